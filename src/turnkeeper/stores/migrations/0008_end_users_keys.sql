-- For whom an application acts; keys in full; tokens that are good for one session.

-- The user in front of the end user, if there is one: an owner is `user` or `user/end user`.
ALTER TABLE sessions ADD COLUMN user_name TEXT NOT NULL DEFAULT '';
UPDATE sessions SET user_name = owner;
ALTER TABLE documents ADD COLUMN user_name TEXT NOT NULL DEFAULT '';
UPDATE documents SET user_name = owner;

-- One index more for the sessions of end users alone: the others are their user's.
DROP INDEX sessions_by_owner;
CREATE INDEX sessions_by_user ON sessions (user_name, archived, id);
CREATE INDEX sessions_by_end_user ON sessions (owner, archived, id) WHERE owner <> user_name;
DROP INDEX documents_by_owner;
CREATE INDEX documents_by_user ON documents (user_name, id);
CREATE INDEX documents_by_end_user ON documents (owner, id) WHERE owner <> user_name;

ALTER TABLE api_keys ADD COLUMN scopes TEXT;        -- with spaces between; NULL: all that can be
ALTER TABLE api_keys ADD COLUMN limits TEXT;        -- JSON; NULL: none of its own
ALTER TABLE api_keys ADD COLUMN expires_at BIGINT;  -- NULL: never
ALTER TABLE api_keys ADD COLUMN used_at BIGINT;     -- to the minute
ALTER TABLE api_keys ADD COLUMN old_hash TEXT;      -- of the secret before, good until `old_until`
ALTER TABLE api_keys ADD COLUMN old_until BIGINT;
CREATE UNIQUE INDEX api_keys_by_old_hash ON api_keys (old_hash) WHERE old_hash IS NOT NULL;

-- What a browser may have: a token is good for one session, and no longer than what it came from.
CREATE TABLE session_tokens (
    hash TEXT NOT NULL PRIMARY KEY, -- SHA-256 of the token, in hex
    session_id TEXT NOT NULL,
    user_name TEXT NOT NULL,
    key_id TEXT,                    -- the key it was made with; NULL: a login, or another's token
    expires_at BIGINT NOT NULL
) -- clustered
;
CREATE INDEX session_tokens_by_session ON session_tokens (session_id);
CREATE INDEX session_tokens_by_expiry ON session_tokens (expires_at);

-- Who may come in. No secret is stored, only what tells that one is right.

CREATE TABLE users (
    name TEXT NOT NULL PRIMARY KEY,
    password_hash TEXT,             -- argon2id; NULL: no login by password
    role TEXT NOT NULL,             -- user, admin
    disabled BIGINT NOT NULL DEFAULT 0,
    created_at BIGINT NOT NULL
) -- clustered
;

-- A row for each browser in which someone is logged in.
CREATE TABLE logins (
    hash TEXT NOT NULL PRIMARY KEY, -- SHA-256 of the token, in hex
    user_name TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    seen_at BIGINT NOT NULL         -- to the minute
) -- clustered
;
CREATE INDEX logins_by_user ON logins (user_name);

CREATE TABLE api_keys (
    id TEXT NOT NULL PRIMARY KEY,
    user_name TEXT NOT NULL,
    name TEXT NOT NULL,             -- what its user calls it
    hash TEXT NOT NULL,             -- SHA-256 of the key, in hex
    created_at BIGINT NOT NULL
) -- clustered
;
CREATE UNIQUE INDEX api_keys_by_hash ON api_keys (hash);
CREATE INDEX api_keys_by_user ON api_keys (user_name);

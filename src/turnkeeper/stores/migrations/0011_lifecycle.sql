-- When sessions expire, and what is to go with one that goes.

ALTER TABLE revisions ADD COLUMN max_age BIGINT;  -- seconds, as the blueprint says

-- Before this time the session cannot expire; then it is looked at. NULL: it never expires. No turn
-- writes it, so that none has to move an entry of the index.
ALTER TABLE sessions ADD COLUMN due_at BIGINT;
UPDATE sessions SET due_at = updated_at + 1000 * (
    SELECT r.idle_timeout FROM revisions r WHERE r.id = sessions.revision
);
CREATE INDEX sessions_by_due ON sessions (due_at) WHERE due_at IS NOT NULL;

-- The session that was made under the key, or in which a turn was begun.
ALTER TABLE idempotency_keys ADD COLUMN session_id TEXT;
CREATE INDEX idempotency_keys_by_session ON idempotency_keys (session_id)
    WHERE session_id IS NOT NULL;

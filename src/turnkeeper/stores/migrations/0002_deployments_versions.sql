-- Deployments and their revisions; what a session is made of; versions of what was said.

-- A blueprint never changes once it is published: sessions are pinned to it.
CREATE TABLE revisions (
    id TEXT NOT NULL PRIMARY KEY,
    deployment TEXT NOT NULL,
    number BIGINT NOT NULL,         -- counts the revisions of a deployment
    blueprint TEXT NOT NULL,        -- JSON
    idle_timeout BIGINT,            -- seconds, as the blueprint says
    created_at BIGINT NOT NULL
) -- clustered
;
CREATE UNIQUE INDEX revisions_by_deployment ON revisions (deployment, number);

CREATE TABLE deployments (
    name TEXT NOT NULL PRIMARY KEY,
    revision TEXT NOT NULL,         -- what new sessions get
    source TEXT NOT NULL,           -- file: only the configuration may change it; or api
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
) -- clustered
;

ALTER TABLE sessions ADD COLUMN revision TEXT NOT NULL DEFAULT '';
ALTER TABLE sessions ADD COLUMN title TEXT;  -- its own; NULL: made of its first message
ALTER TABLE sessions ADD COLUMN pinned BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN archived BIGINT NOT NULL DEFAULT 0;
ALTER TABLE sessions ADD COLUMN variables BIGINT NOT NULL DEFAULT 0;  -- how many it has
ALTER TABLE sessions ADD COLUMN version BIGINT NOT NULL DEFAULT 0;    -- counts changes

-- A page of a list is read from here, so that it costs the same however many there are.
DROP INDEX sessions_by_owner;
CREATE INDEX sessions_by_owner ON sessions (owner, archived, id);

-- What a session has that may be long and hardly changes; no row if it has neither.
CREATE TABLE session_data (
    session_id TEXT NOT NULL PRIMARY KEY,
    variables TEXT NOT NULL,        -- JSON, as is
    metadata TEXT NOT NULL          -- JSON
) -- clustered
;

-- The turn in whose place this one stands, and the one whose words it answers; NULL is itself.
ALTER TABLE turns ADD COLUMN slot BIGINT;
ALTER TABLE turns ADD COLUMN input BIGINT;

ALTER TABLE items ADD COLUMN created_at BIGINT NOT NULL DEFAULT 0;

-- What was replaced, apart from what is listed, so that no turn reads over it. It carries the
-- number of the turn it begins with: all of it goes and comes back together.
CREATE TABLE hidden_items (
    session_id TEXT NOT NULL,
    turn BIGINT NOT NULL,
    position BIGINT NOT NULL,
    kind TEXT NOT NULL,
    text TEXT NOT NULL,
    data TEXT,
    weight BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    in_prompt BIGINT NOT NULL,
    branch BIGINT NOT NULL,
    PRIMARY KEY (session_id, turn, position)
) -- clustered
;

UPDATE items SET created_at = COALESCE((
    SELECT CASE WHEN items.kind = 'assistant' THEN COALESCE(t.finished_at, t.created_at)
        ELSE t.created_at END
    FROM turns t WHERE t.session_id = items.session_id AND t.number = items.turn
), 0);

-- A table marked `clustered` lies in the order of its primary key where the database can do so.

-- Sessions are narrow: whatever can be long stands in `items`, so that lists stay fast.
CREATE TABLE sessions (
    id TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL,
    alias TEXT,                     -- the id its client chose, if it chose one
    model TEXT,                     -- the model last asked for; NULL for the server's default
    turns BIGINT NOT NULL,          -- the number of the newest turn; numbers are never used again
    running BIGINT,                 -- the number of the running turn: the session's one slot
    message_count BIGINT NOT NULL,
    hidden_count BIGINT NOT NULL,   -- of those messages, how many no prompt may show
    weight BIGINT NOT NULL,         -- of all items that a prompt could show
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
) -- clustered
;
CREATE UNIQUE INDEX sessions_by_alias ON sessions (owner, alias) WHERE alias IS NOT NULL;
CREATE INDEX sessions_by_owner ON sessions (owner, id);

CREATE TABLE turns (
    session_id TEXT NOT NULL,
    number BIGINT NOT NULL,
    status TEXT NOT NULL,
    model TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    finished_at BIGINT,
    prompt_tokens BIGINT,
    completion_tokens BIGINT,
    usage_estimated BIGINT,
    error_code TEXT,
    error TEXT,
    retry_after DOUBLE PRECISION,
    messages_sent BIGINT,
    messages_dropped BIGINT,
    estimated_tokens BIGINT,
    PRIMARY KEY (session_id, number)
) -- clustered
;
-- What a crash abandons is found without reading what has long ended.
CREATE INDEX turns_open ON turns (session_id, number) WHERE status IN ('queued', 'running');

-- Append only. A session's order is (turn, position), never time of insertion.
CREATE TABLE items (
    session_id TEXT NOT NULL,
    turn BIGINT NOT NULL,
    position BIGINT NOT NULL,
    kind TEXT NOT NULL,             -- user, assistant, system, tool_call, tool_result, reasoning
    text TEXT NOT NULL,
    data TEXT,                      -- JSON: what an item has beside its text
    weight BIGINT NOT NULL,
    in_prompt BIGINT NOT NULL,      -- 0 once its turn has failed or ended without a word
    PRIMARY KEY (session_id, turn, position)
) -- clustered
;

-- The words of replies that are still being made, about a second's worth a row.
CREATE TABLE checkpoints (
    session_id TEXT NOT NULL,
    turn BIGINT NOT NULL,
    position BIGINT NOT NULL,
    text TEXT NOT NULL,
    PRIMARY KEY (session_id, turn, position)
) -- clustered
;

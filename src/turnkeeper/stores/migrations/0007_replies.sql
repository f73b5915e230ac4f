-- Replies of more than text; what a dialect keeps with a turn.

ALTER TABLE turns ADD COLUMN finish TEXT;             -- why the model stopped, if it said so
ALTER TABLE turns ADD COLUMN cached_tokens BIGINT;    -- of the prompt's, remembered by the provider
ALTER TABLE turns ADD COLUMN reasoning_tokens BIGINT; -- of the reply's, thought and not said

-- No row where there is neither.
CREATE TABLE turn_data (
    session_id TEXT NOT NULL,
    number BIGINT NOT NULL,
    data TEXT,                      -- the dialect's own words; NULL: it keeps nothing
    cuts TEXT,                      -- in which pieces the reply came, where someone counted them
    PRIMARY KEY (session_id, number)
) -- clustered
;

ALTER TABLE checkpoints ADD COLUMN cuts TEXT;

-- `archived` in sessions is 2 for one that is in no list: it was made for a single exchange.

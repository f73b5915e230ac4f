-- What a model is shown in place of what no longer fits, and how it counts.

-- A session's summary tells of everything up to an item; no row if there is none.
CREATE TABLE summaries (
    session_id TEXT NOT NULL PRIMARY KEY,
    turn BIGINT NOT NULL,           -- of the last item it tells of
    position BIGINT NOT NULL,
    text TEXT NOT NULL
) -- clustered
;

ALTER TABLE turns ADD COLUMN summarised BIGINT;  -- 1: the model was shown a summary

CREATE TABLE token_counts (
    model TEXT NOT NULL PRIMARY KEY,         -- the id it is listed by
    bytes_per_token DOUBLE PRECISION NOT NULL,
    deviation DOUBLE PRECISION NOT NULL,     -- of these, in the mean
    error DOUBLE PRECISION NOT NULL,         -- of our guesses, in the mean
    reports BIGINT NOT NULL                  -- how many it was learned from
) -- clustered
;

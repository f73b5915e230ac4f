-- What was used: kept apart from what was said, which it outlives.

-- Turns that have ended and are not yet in the sums below; whoever adds them there removes them
-- here in the same transaction, so that each is counted once.
CREATE TABLE usage_entries (
    session_id TEXT NOT NULL,
    turn BIGINT NOT NULL,
    owner TEXT NOT NULL,
    revision TEXT NOT NULL,          -- of the session when the turn ended
    model TEXT NOT NULL,
    status TEXT NOT NULL,
    finished_at BIGINT NOT NULL,
    duration BIGINT NOT NULL,        -- ms from the message to the end
    first_delta BIGINT,              -- ms from the message to the first word, if there was one
    prompt_tokens BIGINT,
    completion_tokens BIGINT,
    PRIMARY KEY (session_id, turn)
) -- clustered
;

-- Of everybody (no user, no end user), of each user with all end users (no end user), and of each
-- end user; on each day together (no deployment, no model), and of each deployment and model.
CREATE TABLE usage_days (
    username TEXT NOT NULL,
    end_user TEXT NOT NULL,
    day TEXT NOT NULL,               -- YYYY-MM-DD, in UTC
    deployment TEXT NOT NULL,
    model TEXT NOT NULL,
    requests BIGINT NOT NULL,        -- which are of no deployment and no model
    completed BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    cancelled BIGINT NOT NULL,
    interrupted BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    duration BIGINT NOT NULL,        -- ms of those completed, together
    first_delta BIGINT NOT NULL,     -- ms to the first words, together
    durations TEXT NOT NULL,         -- how they are spread, see histograms.py
    first_deltas TEXT NOT NULL,
    PRIMARY KEY (username, end_user, day, deployment, model)
) -- clustered
;
CREATE INDEX usage_by_day ON usage_days (day) WHERE model = '';

-- The same of each user in whole months: a year of many users is read in few rows.
CREATE TABLE usage_months (
    username TEXT NOT NULL,
    month TEXT NOT NULL,             -- YYYY-MM
    requests BIGINT NOT NULL,
    completed BIGINT NOT NULL,
    failed BIGINT NOT NULL,
    cancelled BIGINT NOT NULL,
    interrupted BIGINT NOT NULL,
    prompt_tokens BIGINT NOT NULL,
    completion_tokens BIGINT NOT NULL,
    duration BIGINT NOT NULL,
    first_delta BIGINT NOT NULL,
    durations TEXT NOT NULL,
    first_deltas TEXT NOT NULL,
    PRIMARY KEY (month, username)
) -- clustered
;

-- What has been used of limits that outlast the process, and who may have how many sessions.

CREATE TABLE spent (
    kind TEXT NOT NULL,      -- whose limit: key, user, end_user, session, address
    name TEXT NOT NULL,
    measure TEXT NOT NULL,   -- tokens_per_day or cost_per_month
    ends_at BIGINT NOT NULL, -- when that day or month is over
    amount BIGINT NOT NULL,  -- tokens, or billionths of what prices are in
    PRIMARY KEY (kind, name, measure)
) -- clustered
;
CREATE INDEX spent_by_end ON spent (ends_at);

-- A row for each owner with a limit on sessions, so that two who make one wait for each other.
CREATE TABLE session_quotas (
    owner TEXT NOT NULL PRIMARY KEY
) -- clustered
;

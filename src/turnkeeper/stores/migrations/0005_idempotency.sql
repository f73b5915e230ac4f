-- What a request with an idempotency key began or made: asked again, it is not done again.
CREATE TABLE idempotency_keys (
    owner TEXT NOT NULL,
    key TEXT NOT NULL,              -- as the client chose it
    request TEXT NOT NULL,          -- a hash of its method, path and body
    made TEXT NOT NULL,             -- the id of the turn or the thing, the name of a deployment
    created_at BIGINT NOT NULL,
    PRIMARY KEY (owner, key)
) -- clustered
;
CREATE INDEX idempotency_keys_by_age ON idempotency_keys (created_at);

-- Documents, their sections, and the chat that a section has.

CREATE TABLE documents (
    id TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL,            -- its author
    title TEXT NOT NULL,
    sections BIGINT NOT NULL,       -- how many it has
    version BIGINT NOT NULL,        -- counts changes, those of its sections too
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
) -- clustered
;
CREATE INDEX documents_by_owner ON documents (owner, id);

-- Narrow: an outline is read from here, and moving a section does not copy its text.
CREATE TABLE sections (
    id TEXT NOT NULL PRIMARY KEY,
    document_id TEXT NOT NULL,
    rank BIGINT NOT NULL,           -- their order, with gaps for what comes between
    type TEXT NOT NULL,             -- header, text or reference
    level BIGINT NOT NULL,
    title TEXT NOT NULL,
    size BIGINT NOT NULL,           -- bytes of its text
    version BIGINT NOT NULL,        -- counts changes to what is written
    session_id TEXT,                -- its chat, which may be gone; NULL before there was one
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
) -- clustered
;
CREATE INDEX sections_by_document ON sections (document_id, rank);

CREATE TABLE section_texts (
    section_id TEXT NOT NULL PRIMARY KEY,
    content TEXT NOT NULL
);

ALTER TABLE sessions ADD COLUMN section TEXT;  -- the section it is the chat of
ALTER TABLE sessions ADD COLUMN configured BIGINT NOT NULL DEFAULT 0;  -- 1: it has a config

ALTER TABLE session_data ADD COLUMN config TEXT;             -- JSON, as the client gave it
ALTER TABLE session_data ADD COLUMN context_documents TEXT;  -- JSON

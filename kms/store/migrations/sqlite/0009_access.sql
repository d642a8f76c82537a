-- Who was given what, the policy document, what waits for the consent of others, and access tokens that are renewed, are
-- bound to a certificate, or have no role of their own.
--
-- The tokens that were there mean what they meant. SQLite drops no NOT NULL, and the table is not made anew for it: a
-- token without a role of its own has '' for its role, and null for its keys.
ALTER TABLE access_tokens ADD COLUMN period_us INTEGER;          -- null: it cannot be renewed
ALTER TABLE access_tokens ADD COLUMN renewable_until_us INTEGER; -- null: without such a bound
ALTER TABLE access_tokens ADD COLUMN bound_to TEXT;              -- canonical name; null: to nobody's certificate

ALTER TABLE key_classes ADD COLUMN approvals INTEGER;            -- null: as many as are built in

CREATE TABLE role_bindings (
    name             TEXT    NOT NULL PRIMARY KEY,
    principal        TEXT    NOT NULL, -- canonical name
    role             TEXT    NOT NULL,
    "only"           TEXT    NOT NULL, -- a JSON array of actions; empty: all of the role's
    "on"             TEXT    NOT NULL, -- *, key:NAME, class:NAME or label:NAME=VALUE
    required_context TEXT    NOT NULL, -- a JSON object of strings
    not_before_us    INTEGER,          -- null: at once
    expires_at_us    INTEGER,          -- null: when it is revoked
    created_by       TEXT    NOT NULL, -- canonical name of the caller
    created_at_us    INTEGER NOT NULL,
    revoked_at_us    INTEGER,
    generation       INTEGER NOT NULL
) STRICT;

-- The latest version holds.
CREATE TABLE policies (
    version    INTEGER NOT NULL PRIMARY KEY CHECK (version > 0), -- without gaps; compare-and-set runs on it
    text       TEXT    NOT NULL, -- Cedar policies
    note       TEXT    NOT NULL,
    "by"       TEXT    NOT NULL, -- canonical name of the caller
    at_us      INTEGER NOT NULL,
    generation INTEGER NOT NULL
) STRICT;

CREATE TABLE proposals (
    id             TEXT    NOT NULL PRIMARY KEY,
    change         TEXT    NOT NULL, -- canonical JSON
    sha256         BLOB    NOT NULL CHECK (length(sha256) = 32), -- of that text
    proposed_by    TEXT    NOT NULL, -- canonical name of the caller
    proposed_at_us INTEGER NOT NULL,
    expires_at_us  INTEGER NOT NULL,
    required       INTEGER NOT NULL CHECK (required >= 0), -- approvals
    -- What changes; the rest never does.
    votes          TEXT    NOT NULL, -- a JSON array, in the order in which they were cast
    state          TEXT    NOT NULL,
    state_at_us    INTEGER NOT NULL,
    reason         TEXT,             -- of the error, of one that failed
    revision       INTEGER NOT NULL CHECK (revision > 0), -- compare-and-set runs on it
    generation     INTEGER NOT NULL
) STRICT;

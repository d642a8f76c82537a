-- Times are microseconds since 1970-01-01T00:00:00Z, spans are microseconds: the names end in _us.
-- In PostgreSQL the same tables have BIGINT for INTEGER and BYTEA for BLOB, and no STRICT.

-- Counts committed transactions.
CREATE TABLE generation (
    one   INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    value INTEGER NOT NULL
) STRICT;
INSERT INTO generation (one, value) VALUES (1, 0);

CREATE TABLE keys (
    id                 TEXT    NOT NULL PRIMARY KEY,
    uid                BLOB    NOT NULL CHECK (length(uid) = 16),
    algorithm          TEXT    NOT NULL,
    owner              TEXT    NOT NULL,
    labels             TEXT    NOT NULL, -- a JSON object of strings
    rotation_period_us INTEGER,          -- null: by hand only
    publish_lead_us    INTEGER NOT NULL,
    max_token_ttl_us   INTEGER NOT NULL,
    tokens_until_us    INTEGER,          -- null: the token life never was longer
    created_at_us      INTEGER NOT NULL,
    updated_at_us      INTEGER NOT NULL,
    revision           INTEGER NOT NULL  -- compare-and-set runs on it
) STRICT;

CREATE TABLE key_versions (
    key_id            TEXT    NOT NULL REFERENCES keys (id),
    number            INTEGER NOT NULL CHECK (number > 0),
    cka_id            BLOB    NOT NULL CHECK (length(cka_id) = 16),
    earlier_attempts  BLOB    NOT NULL CHECK (length(earlier_attempts) % 16 = 0), -- 16 bytes each
    token_serial      TEXT    NOT NULL,
    created_at_us     INTEGER NOT NULL,
    -- What is known once it is born; all null while it is CREATING.
    spki              BLOB,
    kid               TEXT,
    published_at_us   INTEGER,
    activates_at_us   INTEGER,
    retires_at_us     INTEGER,
    withdrawn_at_us   INTEGER,
    destroys_at_us    INTEGER,
    suspended         INTEGER NOT NULL CHECK (suspended IN (0, 1)),
    compromised_at_us INTEGER,
    destroyed_at_us   INTEGER,
    PRIMARY KEY (key_id, number),
    CHECK (
        (spki IS NOT NULL AND kid IS NOT NULL AND published_at_us IS NOT NULL AND activates_at_us IS NOT NULL)
        OR (spki IS NULL AND kid IS NULL AND published_at_us IS NULL AND activates_at_us IS NULL
            AND retires_at_us IS NULL AND withdrawn_at_us IS NULL AND destroys_at_us IS NULL)
    )
) STRICT;

-- An object in the token belongs to one version.
CREATE UNIQUE INDEX key_versions_one_object ON key_versions (token_serial, cka_id);

-- A key has at most one version on its way.
CREATE UNIQUE INDEX key_versions_one_unborn ON key_versions (key_id) WHERE spki IS NULL;

CREATE TABLE access_tokens (
    name          TEXT    NOT NULL PRIMARY KEY,
    sha256        BLOB    NOT NULL UNIQUE CHECK (length(sha256) = 32),
    role          TEXT    NOT NULL,
    keys          TEXT,             -- a JSON array of names; null: every key
    bootstrap     INTEGER NOT NULL CHECK (bootstrap IN (0, 1)),
    created_at_us INTEGER NOT NULL,
    expires_at_us INTEGER,
    revoked_at_us INTEGER
) STRICT;

-- At most one, ever: rows are never deleted.
CREATE UNIQUE INDEX access_tokens_one_bootstrap ON access_tokens (bootstrap) WHERE bootstrap = 1;

CREATE TABLE requests (
    id          TEXT    NOT NULL PRIMARY KEY,
    fingerprint BLOB    NOT NULL CHECK (length(fingerprint) = 32),
    key_id      TEXT    NOT NULL,
    version     INTEGER,
    at_us       INTEGER NOT NULL
) STRICT;

CREATE INDEX requests_at ON requests (at_us);

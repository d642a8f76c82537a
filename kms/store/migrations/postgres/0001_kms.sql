-- Times are microseconds since 1970-01-01T00:00:00Z, spans are microseconds: the names end in _us. The tables are those
-- of SQLite (migrations/sqlite says more about them), and those that replicas need.

-- Counts committed transactions. Every commit begins by updating this row: so commits are one after another.
CREATE TABLE generation (
    one   BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    value BIGINT NOT NULL
);
INSERT INTO generation (one, value) VALUES (1, 0);

-- The oldest program that may use this schema, by the newest migration that it knows. A migration that takes something
-- away from the program before it raises this.
CREATE TABLE schema_compatibility (
    one            BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    oldest_program BIGINT NOT NULL
);
INSERT INTO schema_compatibility (one, oldest_program) VALUES (1, 1);

CREATE TABLE keys (
    id                 TEXT   NOT NULL PRIMARY KEY,
    uid                BYTEA  NOT NULL CHECK (octet_length(uid) = 16),
    algorithm          TEXT   NOT NULL,
    owner              TEXT   NOT NULL,
    labels             TEXT   NOT NULL,
    rotation_period_us BIGINT,
    publish_lead_us    BIGINT NOT NULL,
    max_token_ttl_us   BIGINT NOT NULL,
    tokens_until_us    BIGINT,
    created_at_us      BIGINT NOT NULL,
    updated_at_us      BIGINT NOT NULL,
    revision           BIGINT NOT NULL,
    generation         BIGINT NOT NULL
);
CREATE INDEX keys_generation ON keys (generation);

CREATE TABLE key_versions (
    key_id            TEXT    NOT NULL REFERENCES keys (id),
    number            BIGINT  NOT NULL CHECK (number > 0),
    cka_id            BYTEA   NOT NULL CHECK (octet_length(cka_id) = 16),
    earlier_attempts  BYTEA   NOT NULL CHECK (octet_length(earlier_attempts) % 16 = 0),
    token_serial      TEXT    NOT NULL,
    created_at_us     BIGINT  NOT NULL,
    maker             TEXT,
    spki              BYTEA,
    kid               TEXT,
    published_at_us   BIGINT,
    activates_at_us   BIGINT,
    retires_at_us     BIGINT,
    withdrawn_at_us   BIGINT,
    destroys_at_us    BIGINT,
    suspended         BOOLEAN NOT NULL,
    compromised_at_us BIGINT,
    destroyed_at_us   BIGINT,
    PRIMARY KEY (key_id, number),
    CHECK (
        (spki IS NOT NULL AND kid IS NOT NULL AND published_at_us IS NOT NULL AND activates_at_us IS NOT NULL)
        OR (spki IS NULL AND kid IS NULL AND published_at_us IS NULL AND activates_at_us IS NULL
            AND retires_at_us IS NULL AND withdrawn_at_us IS NULL AND destroys_at_us IS NULL)
    )
);
CREATE UNIQUE INDEX key_versions_one_object ON key_versions (token_serial, cka_id);
CREATE UNIQUE INDEX key_versions_one_unborn ON key_versions (key_id) WHERE spki IS NULL;

CREATE TABLE access_tokens (
    name          TEXT    NOT NULL PRIMARY KEY,
    sha256        BYTEA   NOT NULL UNIQUE CHECK (octet_length(sha256) = 32),
    role          TEXT    NOT NULL,
    keys          TEXT,
    bootstrap     BOOLEAN NOT NULL,
    created_at_us BIGINT  NOT NULL,
    expires_at_us BIGINT,
    revoked_at_us BIGINT,
    generation    BIGINT  NOT NULL
);
CREATE UNIQUE INDEX access_tokens_one_bootstrap ON access_tokens (bootstrap) WHERE bootstrap;

CREATE TABLE requests (
    id          TEXT   NOT NULL PRIMARY KEY,
    fingerprint BYTEA  NOT NULL CHECK (octet_length(fingerprint) = 32),
    key_id      TEXT   NOT NULL,
    version     BIGINT,
    at_us       BIGINT NOT NULL
);
CREATE INDEX requests_at ON requests (at_us);

CREATE TABLE quarantined_objects (
    token_serial TEXT   NOT NULL,
    cka_id       BYTEA  NOT NULL CHECK (octet_length(cka_id) BETWEEN 1 AND 64),
    note         TEXT   NOT NULL,
    "by"         TEXT   NOT NULL,
    at_us        BIGINT NOT NULL,
    generation   BIGINT NOT NULL,
    PRIMARY KEY (token_serial, cka_id)
);

CREATE TABLE epoch (
    one          BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    installation BYTEA  NOT NULL CHECK (octet_length(installation) = 16),
    value        BIGINT NOT NULL CHECK (value > 0),
    nonce        BYTEA  NOT NULL CHECK (octet_length(nonce) = 8),
    in_token     BIGINT NOT NULL CHECK (in_token BETWEEN 0 AND value),
    generation   BIGINT NOT NULL
);

CREATE TABLE pin_latches (
    token_serial    TEXT   NOT NULL,
    pin_generation  BIGINT NOT NULL CHECK (pin_generation >= 0),
    state           TEXT   NOT NULL CHECK (state IN ('unproven', 'proven', 'refused')),
    trying_by       TEXT,
    trying_since_us BIGINT,
    deaths          BIGINT NOT NULL CHECK (deaths >= 0),
    refused_text    TEXT,
    refused_at_us   BIGINT,
    PRIMARY KEY (token_serial, pin_generation),
    CHECK ((trying_by IS NULL) = (trying_since_us IS NULL)),
    CHECK ((state = 'refused') = (refused_text IS NOT NULL) AND (state = 'refused') = (refused_at_us IS NOT NULL)),
    CHECK (state <> 'refused' OR trying_by IS NULL),
    CHECK (state = 'proven' OR deaths = 0)
);

-- One row for each run of each server, rewritten with each beat. Counts in no generation.
CREATE TABLE replicas (
    id         TEXT   NOT NULL PRIMARY KEY,
    seen_at_us BIGINT NOT NULL,       -- by the database's clock
    known      BIGINT,                -- the generation that it works with; null before it serves
    report     TEXT   NOT NULL,
    settings   TEXT                   -- what all replicas must agree on, as a JSON object; null before it has joined
);

-- Who does the background work. The token counts the holders.
CREATE TABLE leases (
    one           BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    holder        TEXT,
    token         BIGINT NOT NULL,
    expires_at_us BIGINT NOT NULL
);
INSERT INTO leases (one, holder, token, expires_at_us) VALUES (1, NULL, 0, 0);

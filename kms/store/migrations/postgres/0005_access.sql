-- As in SQLite: migrations/sqlite/0009_access.sql says more. The program before this one goes on beside it: what it
-- writes fits. What it could not read, or would not obey, is not written while it is at work.
ALTER TABLE access_tokens ADD COLUMN period_us BIGINT;
ALTER TABLE access_tokens ADD COLUMN renewable_until_us BIGINT;
ALTER TABLE access_tokens ADD COLUMN bound_to TEXT;

ALTER TABLE key_classes ADD COLUMN approvals BIGINT;

CREATE TABLE role_bindings (
    name             TEXT   NOT NULL PRIMARY KEY,
    principal        TEXT   NOT NULL,
    role             TEXT   NOT NULL,
    "only"           TEXT   NOT NULL,
    "on"             TEXT   NOT NULL,
    required_context TEXT   NOT NULL,
    not_before_us    BIGINT,
    expires_at_us    BIGINT,
    created_by       TEXT   NOT NULL,
    created_at_us    BIGINT NOT NULL,
    revoked_at_us    BIGINT,
    generation       BIGINT NOT NULL
);

CREATE TABLE policies (
    version    BIGINT NOT NULL PRIMARY KEY CHECK (version > 0),
    text       TEXT   NOT NULL,
    note       TEXT   NOT NULL,
    "by"       TEXT   NOT NULL,
    at_us      BIGINT NOT NULL,
    generation BIGINT NOT NULL
);

CREATE TABLE proposals (
    id             TEXT   NOT NULL PRIMARY KEY,
    change         TEXT   NOT NULL,
    sha256         BYTEA  NOT NULL CHECK (length(sha256) = 32),
    proposed_by    TEXT   NOT NULL,
    proposed_at_us BIGINT NOT NULL,
    expires_at_us  BIGINT NOT NULL,
    required       BIGINT NOT NULL CHECK (required >= 0),
    votes          TEXT   NOT NULL,
    state          TEXT   NOT NULL,
    state_at_us    BIGINT NOT NULL,
    reason         TEXT,
    revision       BIGINT NOT NULL CHECK (revision > 0),
    generation     BIGINT NOT NULL
);

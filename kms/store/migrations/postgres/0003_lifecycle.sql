-- As in SQLite: migrations/sqlite/0007_lifecycle.sql says more.
ALTER TABLE keys ADD COLUMN purpose TEXT NOT NULL DEFAULT 'jwt';
ALTER TABLE keys ADD COLUMN class TEXT NOT NULL DEFAULT 'jwt-signing';
ALTER TABLE keys ADD COLUMN inherited TEXT NOT NULL DEFAULT '{}';
ALTER TABLE keys ADD COLUMN overlap_us BIGINT NOT NULL DEFAULT 0;
ALTER TABLE keys ADD COLUMN destroy_after_us BIGINT;
ALTER TABLE keys ADD COLUMN claim_rules TEXT NOT NULL DEFAULT '{}';
ALTER TABLE keys ADD COLUMN bundles_until_us BIGINT;

ALTER TABLE key_versions ADD COLUMN compromise_reason TEXT;
ALTER TABLE key_versions ADD COLUMN at_once BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE key_versions ADD COLUMN asked_for_us BIGINT;
ALTER TABLE key_versions ADD COLUMN cross_signature TEXT;

CREATE TABLE key_classes (
    name               TEXT   NOT NULL PRIMARY KEY,
    rotation_period_us BIGINT,
    publish_lead_us    BIGINT NOT NULL,
    max_token_ttl_us   BIGINT NOT NULL,
    overlap_us         BIGINT NOT NULL,
    destroy_after_us   BIGINT,
    revision           BIGINT NOT NULL CHECK (revision > 0),
    updated_at_us      BIGINT NOT NULL,
    generation         BIGINT NOT NULL
);

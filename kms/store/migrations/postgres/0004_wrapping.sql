-- As in SQLite: migrations/sqlite/0008_wrapping.sql says more. The program before this one goes on beside it: what it
-- writes fits, and it reads what it knows. A key that wraps would stop it, and is not made while it is at work.
ALTER TABLE keys ADD COLUMN required_context TEXT NOT NULL DEFAULT '[]';

ALTER TABLE key_versions ADD COLUMN known_answer BYTEA;
ALTER TABLE key_versions DROP CONSTRAINT key_versions_check;
ALTER TABLE key_versions ADD CONSTRAINT key_versions_pair CHECK ((spki IS NULL) = (kid IS NULL));
ALTER TABLE key_versions ADD CONSTRAINT key_versions_born CHECK (
    ((spki IS NULL) <> (known_answer IS NULL) AND published_at_us IS NOT NULL AND activates_at_us IS NOT NULL)
    OR (spki IS NULL AND known_answer IS NULL AND published_at_us IS NULL AND activates_at_us IS NULL
        AND retires_at_us IS NULL AND withdrawn_at_us IS NULL AND destroys_at_us IS NULL)
);
DROP INDEX key_versions_one_unborn;
CREATE UNIQUE INDEX key_versions_one_unborn ON key_versions (key_id) WHERE published_at_us IS NULL;

CREATE TABLE version_uses (
    key_id          TEXT   NOT NULL,
    version         BIGINT NOT NULL,
    reserved        BIGINT NOT NULL CHECK (reserved >= 0),
    wrapped_at_us   BIGINT,
    unwrapped_at_us BIGINT,
    generation      BIGINT NOT NULL,
    PRIMARY KEY (key_id, version),
    FOREIGN KEY (key_id, version) REFERENCES key_versions (key_id, number)
);

CREATE TABLE usage_reports (
    key_id        TEXT   NOT NULL REFERENCES keys (id),
    consumer      TEXT   NOT NULL,
    envelopes     TEXT   NOT NULL,
    "by"          TEXT   NOT NULL,
    at_us         BIGINT NOT NULL,
    removed_at_us BIGINT,
    generation    BIGINT NOT NULL,
    PRIMARY KEY (key_id, consumer)
);

-- The newest migration that a replica's program knows; null: none after 3.
ALTER TABLE replicas ADD COLUMN schema BIGINT;

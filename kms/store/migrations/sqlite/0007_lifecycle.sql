-- What a key is for, and which class gives it the periods that it has not of its own. The keys that were there have all
-- of theirs of their own.
ALTER TABLE keys ADD COLUMN purpose TEXT NOT NULL DEFAULT 'jwt';
ALTER TABLE keys ADD COLUMN class TEXT NOT NULL DEFAULT 'jwt-signing';
ALTER TABLE keys ADD COLUMN inherited TEXT NOT NULL DEFAULT '{}';        -- a JSON object of the inherited ones
ALTER TABLE keys ADD COLUMN overlap_us INTEGER NOT NULL DEFAULT 0;
ALTER TABLE keys ADD COLUMN destroy_after_us INTEGER;
ALTER TABLE keys ADD COLUMN claim_rules TEXT NOT NULL DEFAULT '{}';      -- a JSON object
ALTER TABLE keys ADD COLUMN bundles_until_us INTEGER;                   -- bundles of a longer lead are out there

ALTER TABLE key_versions ADD COLUMN compromise_reason TEXT;
ALTER TABLE key_versions ADD COLUMN at_once INTEGER NOT NULL DEFAULT 0 CHECK (at_once IN (0, 1));
ALTER TABLE key_versions ADD COLUMN asked_for_us INTEGER;               -- when it was to take over
ALTER TABLE key_versions ADD COLUMN cross_signature TEXT;               -- its predecessor's statement, a compact JWS

-- Classes that somebody has changed.
CREATE TABLE key_classes (
    name               TEXT    NOT NULL PRIMARY KEY,
    rotation_period_us INTEGER,
    publish_lead_us    INTEGER NOT NULL,
    max_token_ttl_us   INTEGER NOT NULL,
    overlap_us         INTEGER NOT NULL,
    destroy_after_us   INTEGER,
    revision           INTEGER NOT NULL CHECK (revision > 0),
    updated_at_us      INTEGER NOT NULL,
    generation         INTEGER NOT NULL
) STRICT;

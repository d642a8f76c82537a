-- Keys that wrap: what their wraps must name, what is on record of a secret key, how much a version was used, and what
-- its consumers say.
ALTER TABLE keys ADD COLUMN required_context TEXT NOT NULL DEFAULT '[]'; -- a JSON array of names

-- A secret key has no public half. SQLite does not change a CHECK: the table is made anew, with the same columns.
CREATE TABLE key_versions_anew (
    key_id            TEXT    NOT NULL REFERENCES keys (id),
    number            INTEGER NOT NULL CHECK (number > 0),
    cka_id            BLOB    NOT NULL CHECK (length(cka_id) = 16),
    earlier_attempts  BLOB    NOT NULL CHECK (length(earlier_attempts) % 16 = 0), -- 16 bytes each
    token_serial      TEXT    NOT NULL,
    created_at_us     INTEGER NOT NULL,
    -- What is known once it is born; all null while it is CREATING.
    spki              BLOB,           -- of a pair
    kid               TEXT,           -- of a pair
    published_at_us   INTEGER,
    activates_at_us   INTEGER,
    retires_at_us     INTEGER,
    withdrawn_at_us   INTEGER,
    destroys_at_us    INTEGER,
    suspended         INTEGER NOT NULL CHECK (suspended IN (0, 1)),
    compromised_at_us INTEGER,
    destroyed_at_us   INTEGER,
    maker             TEXT,
    compromise_reason TEXT,
    at_once           INTEGER NOT NULL DEFAULT 0 CHECK (at_once IN (0, 1)),
    asked_for_us      INTEGER,
    cross_signature   TEXT,
    known_answer      BLOB,           -- of a secret key: what it made of a text that everybody knows
    PRIMARY KEY (key_id, number),
    CHECK ((spki IS NULL) = (kid IS NULL)),
    CHECK (
        ((spki IS NULL) <> (known_answer IS NULL) AND published_at_us IS NOT NULL AND activates_at_us IS NOT NULL)
        OR (spki IS NULL AND known_answer IS NULL AND published_at_us IS NULL AND activates_at_us IS NULL
            AND retires_at_us IS NULL AND withdrawn_at_us IS NULL AND destroys_at_us IS NULL)
    )
) STRICT;
INSERT INTO key_versions_anew (key_id, number, cka_id, earlier_attempts, token_serial, created_at_us, spki, kid,
    published_at_us, activates_at_us, retires_at_us, withdrawn_at_us, destroys_at_us, suspended, compromised_at_us,
    destroyed_at_us, maker, compromise_reason, at_once, asked_for_us, cross_signature)
SELECT key_id, number, cka_id, earlier_attempts, token_serial, created_at_us, spki, kid,
    published_at_us, activates_at_us, retires_at_us, withdrawn_at_us, destroys_at_us, suspended, compromised_at_us,
    destroyed_at_us, maker, compromise_reason, at_once, asked_for_us, cross_signature
FROM key_versions;
DROP TABLE key_versions;
ALTER TABLE key_versions_anew RENAME TO key_versions;
CREATE UNIQUE INDEX key_versions_one_object ON key_versions (token_serial, cka_id);
CREATE UNIQUE INDEX key_versions_one_unborn ON key_versions (key_id) WHERE published_at_us IS NULL;

-- Of versions that were ever used.
CREATE TABLE version_uses (
    key_id          TEXT    NOT NULL,
    version         INTEGER NOT NULL,
    reserved        INTEGER NOT NULL CHECK (reserved >= 0), -- wraps taken out of its budget; compare-and-set runs on it
    wrapped_at_us   INTEGER,                                -- null: not at all
    unwrapped_at_us INTEGER,
    generation      INTEGER NOT NULL,
    PRIMARY KEY (key_id, version),
    FOREIGN KEY (key_id, version) REFERENCES key_versions (key_id, number)
) STRICT;

-- What each consumer of a key said last.
CREATE TABLE usage_reports (
    key_id        TEXT    NOT NULL REFERENCES keys (id),
    consumer      TEXT    NOT NULL,
    envelopes     TEXT    NOT NULL, -- a JSON object: how many it holds, by version
    "by"          TEXT    NOT NULL, -- canonical name of the caller
    at_us         INTEGER NOT NULL,
    removed_at_us INTEGER,          -- there is no such consumer any more
    generation    INTEGER NOT NULL,
    PRIMARY KEY (key_id, consumer)
) STRICT;

-- What is known of each token's PIN, one row for each number that the operator gave it (hsm.pin_generation). No row:
-- never tried. Nothing here depends on the PIN itself. Counts in no generation: the catalog knows nothing of it.
CREATE TABLE pin_latches (
    token_serial    TEXT    NOT NULL,
    pin_generation  INTEGER NOT NULL CHECK (pin_generation >= 0),
    state           TEXT    NOT NULL CHECK (state IN ('unproven', 'proven', 'refused')),
    trying_by       TEXT,             -- who logs in at this moment, or was cut off doing so
    trying_since_us INTEGER,
    deaths          INTEGER NOT NULL CHECK (deaths >= 0), -- tries that ended unexplained since the last success
    refused_text    TEXT,
    refused_at_us   INTEGER,
    PRIMARY KEY (token_serial, pin_generation),
    CHECK ((trying_by IS NULL) = (trying_since_us IS NULL)),
    CHECK ((state = 'refused') = (refused_text IS NOT NULL) AND (state = 'refused') = (refused_at_us IS NOT NULL)),
    CHECK (state != 'refused' OR trying_by IS NULL),
    CHECK (state = 'proven' OR deaths = 0)
) STRICT;

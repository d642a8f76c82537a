-- Objects in the token that no row needs and that an administrator has put on record (kms hsm quarantine).

CREATE TABLE quarantined_objects (
    token_serial TEXT    NOT NULL,
    cka_id       BLOB    NOT NULL CHECK (length(cka_id) BETWEEN 1 AND 64),
    note         TEXT    NOT NULL,
    "by"         TEXT    NOT NULL, -- canonical name of the caller
    at_us        INTEGER NOT NULL,
    PRIMARY KEY (token_serial, cka_id)
) STRICT;

-- How often changes that a restored backup must not undo unseen have moved it, and how far the token has followed.
CREATE TABLE epoch (
    one          INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    installation BLOB    NOT NULL CHECK (length(installation) = 16),
    value        INTEGER NOT NULL CHECK (value > 0),
    nonce        BLOB    NOT NULL CHECK (length(nonce) = 8),
    in_token     INTEGER NOT NULL CHECK (in_token BETWEEN 0 AND value)
) STRICT;

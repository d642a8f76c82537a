-- Where the rows came from, when they came from a SQLite file (kms migrate sqlite-to-postgres). While they are on their
-- way there is no row in `generation`: nobody can commit, load or beat, not even a program that does not know this table.
CREATE TABLE migrated_from (
    one          BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    file         TEXT   NOT NULL,                                      -- its absolute path
    installation BYTEA  CHECK (octet_length(installation) = 16),       -- of its epoch, if it has one
    attempt      BIGINT NOT NULL,                                      -- counts them: an earlier one writes nothing more
    digest       BYTEA  CHECK (octet_length(digest) = 32)              -- over all its rows; null until they are here
);

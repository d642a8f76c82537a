-- The generation that wrote a row last; of a key also the one that wrote any of its versions last. So what is new since
-- a generation can be read alone.
ALTER TABLE keys ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE access_tokens ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE epoch ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
ALTER TABLE quarantined_objects ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
CREATE INDEX keys_generation ON keys (generation);

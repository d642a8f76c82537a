-- Who is at work on a version's birth, or was when it died: one run of one server. Null once it is born.
ALTER TABLE key_versions ADD COLUMN maker TEXT;

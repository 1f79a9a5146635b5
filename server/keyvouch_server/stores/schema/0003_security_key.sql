-- Version 3: sign-ins with a security key at the client.

ALTER TABLE sign_in ADD COLUMN security_key INTEGER NOT NULL DEFAULT 0 CHECK (security_key IN (0, 1));

-- Assertions that came for it and proved nothing.
ALTER TABLE sign_in ADD COLUMN refused_answers INTEGER NOT NULL DEFAULT 0;

-- Sign-ins with a security key that were begun in the running minute.
ALTER TABLE user ADD COLUMN key_begins INTEGER NOT NULL DEFAULT 0;

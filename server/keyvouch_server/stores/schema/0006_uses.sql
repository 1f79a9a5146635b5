-- Version 6: what each sign-in writes and reads is less.

-- When a device was used last stands in the row of its key, which every use of the key writes anyway.
ALTER TABLE credential ADD COLUMN last_used_at INTEGER NOT NULL DEFAULT 0;
UPDATE credential SET last_used_at = coalesce((
    SELECT last_used_at FROM device WHERE device.id = credential.device_id
), 0);
ALTER TABLE device DROP COLUMN last_used_at;

-- How many keys a sign-in was offered to; 0 for those that were begun before this version.
ALTER TABLE sign_in ADD COLUMN offers INTEGER NOT NULL DEFAULT 0;
-- Whether wrong numbers stood on the account when it was begun, so that an approval has some to clear.
ALTER TABLE sign_in ADD COLUMN after_misses INTEGER NOT NULL DEFAULT 1 CHECK (after_misses IN (0, 1));

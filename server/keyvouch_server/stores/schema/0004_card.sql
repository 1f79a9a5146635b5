-- Version 4: keys that an organisation certified.

-- The authority that a key's certificates led to at registration, and those certificates (a CBOR array of DER).
ALTER TABLE credential ADD COLUMN card_authority TEXT NOT NULL DEFAULT '';
ALTER TABLE credential ADD COLUMN card_certificates BLOB NOT NULL DEFAULT x'';

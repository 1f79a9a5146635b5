-- Version 2: devices with a TPM, sign-ins on the device itself.

-- `tpm` is the ceremony's transcript in CBOR (use_cases.tpm_ceremony), empty for a registration without a TPM.
ALTER TABLE registration ADD COLUMN tpm BLOB NOT NULL DEFAULT x'';

-- The device of the same user and TPM that went when this one came.
ALTER TABLE registration ADD COLUMN replaced_device_id TEXT NOT NULL DEFAULT '';

-- What is known of a device's TPM. `firmware_version` is 16 hexadecimal digits, `clock` decimal digits: both are
-- unsigned numbers of 64 bits. `findings`, `pcr_values` and `baseline` are JSON.
CREATE TABLE device_tpm (
    device_id TEXT NOT NULL PRIMARY KEY REFERENCES device (id) ON DELETE CASCADE,
    tenant_id TEXT NOT NULL REFERENCES tenant (id),
    user_id TEXT NOT NULL REFERENCES user (id),
    endorsement_key_hash BLOB NOT NULL,
    transcript BLOB NOT NULL,
    proved_assurance TEXT NOT NULL,
    anchor TEXT NOT NULL,
    manufacturer TEXT NOT NULL,
    model TEXT NOT NULL,
    pin_limit INTEGER NOT NULL,
    channel_key_in_tpm INTEGER NOT NULL CHECK (channel_key_in_tpm IN (0, 1)),
    health TEXT NOT NULL CHECK (health IN ('unknown', 'good', 'drifted', 'failed')),
    reported_at INTEGER NOT NULL,
    findings TEXT NOT NULL,
    firmware_version TEXT NOT NULL,
    clock TEXT NOT NULL,
    reset_count INTEGER NOT NULL,
    restart_count INTEGER NOT NULL,
    pcr_values TEXT NOT NULL,
    baseline TEXT NOT NULL
) STRICT;
CREATE INDEX device_tpm_by_endorsement_key ON device_tpm (endorsement_key_hash);

-- A new key for a registered device: the statement it has to sign, and the attestation key's certificate.
CREATE TABLE key_replacement (
    id TEXT NOT NULL PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenant (id),
    device_id TEXT NOT NULL REFERENCES device (id) ON DELETE CASCADE,
    statement BLOB NOT NULL,
    certificate BLOB NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'complete')),
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    answer_hash BLOB NOT NULL
) STRICT;
CREATE INDEX key_replacement_by_device ON key_replacement (device_id);
CREATE INDEX key_replacement_by_expiry ON key_replacement (expires_at);

-- Begun by the device that also approves, over its own channel.
ALTER TABLE sign_in ADD COLUMN same_device INTEGER NOT NULL DEFAULT 0 CHECK (same_device IN (0, 1));

-- The proof key is the channel key of the device, the thumbprint that of its certificate (RFC 8705).
ALTER TABLE session ADD COLUMN certificate_bound INTEGER NOT NULL DEFAULT 0 CHECK (certificate_bound IN (0, 1));

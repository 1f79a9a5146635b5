-- Version 1: the tables of keyvouch_server.domain.model, one per record class.
-- Every table is STRICT; instants are seconds since the epoch, booleans 0 or 1.

CREATE TABLE tenant (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    name_key TEXT NOT NULL UNIQUE,
    home INTEGER NOT NULL CHECK (home IN (0, 1)),
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE user (
    id TEXT NOT NULL PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenant (id),
    username TEXT NOT NULL,
    username_key TEXT NOT NULL,
    display_name TEXT NOT NULL,
    role TEXT NOT NULL,
    user_handle BLOB NOT NULL UNIQUE,
    created_at INTEGER NOT NULL,
    number_misses INTEGER NOT NULL,
    locked_until INTEGER NOT NULL,
    begins_window INTEGER NOT NULL,
    begins INTEGER NOT NULL,
    UNIQUE (tenant_id, username_key)
) STRICT;

CREATE TABLE policy_version (
    tenant_id TEXT NOT NULL REFERENCES tenant (id),
    version INTEGER NOT NULL,
    document TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    created_by TEXT NOT NULL,
    PRIMARY KEY (tenant_id, version)
) STRICT;

CREATE TABLE access_pass (
    id TEXT NOT NULL PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenant (id),
    user_id TEXT NOT NULL UNIQUE REFERENCES user (id),
    code_hash BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    start_at INTEGER NOT NULL,
    lifetime_minutes INTEGER NOT NULL,
    one_time INTEGER NOT NULL CHECK (one_time IN (0, 1)),
    used_at INTEGER NOT NULL,
    attempts INTEGER NOT NULL
) STRICT;
CREATE INDEX access_pass_by_tenant ON access_pass (tenant_id, id);

CREATE TABLE registration (
    id TEXT NOT NULL PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenant (id),
    user_id TEXT NOT NULL REFERENCES user (id),
    session_id TEXT NOT NULL,
    device_id TEXT NOT NULL UNIQUE,
    token_hash BLOB NOT NULL UNIQUE,
    statement BLOB NOT NULL,
    channel_key BLOB NOT NULL,
    display_name TEXT NOT NULL,
    provider TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'complete')),
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    answer_hash BLOB NOT NULL
) STRICT;
CREATE INDEX registration_by_user ON registration (user_id);
CREATE INDEX registration_by_expiry ON registration (state, expires_at);

CREATE TABLE device (
    id TEXT NOT NULL PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenant (id),
    user_id TEXT NOT NULL REFERENCES user (id),
    display_name TEXT NOT NULL,
    provider TEXT NOT NULL,
    channel_key BLOB NOT NULL UNIQUE,
    certificate BLOB NOT NULL,
    registered_at INTEGER NOT NULL,
    last_used_at INTEGER NOT NULL
) STRICT;
CREATE INDEX device_by_user ON device (user_id, id);
CREATE INDEX device_by_tenant ON device (tenant_id, id);

CREATE TABLE credential (
    id BLOB NOT NULL PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenant (id),
    user_id TEXT NOT NULL REFERENCES user (id),
    device_id TEXT NOT NULL REFERENCES device (id) ON DELETE CASCADE,
    user_handle BLOB NOT NULL,
    public_key BLOB NOT NULL,
    sign_count INTEGER NOT NULL,
    backup_eligible INTEGER NOT NULL CHECK (backup_eligible IN (0, 1)),
    aaguid BLOB NOT NULL,
    attestation_object BLOB NOT NULL,
    client_data BLOB NOT NULL,
    assurance TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;
CREATE INDEX credential_by_user ON credential (user_id);
CREATE INDEX credential_by_device ON credential (device_id);

-- A request that names nobody has the user_id of no user, and no tenant_id if it names no tenant: no references.
CREATE TABLE sign_in (
    id TEXT NOT NULL PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    token_hash BLOB NOT NULL,
    state TEXT NOT NULL CHECK (state IN (
        'pending', 'approved', 'denied', 'reported', 'failed', 'expired', 'superseded', 'cancelled', 'consumed'
    )),
    number TEXT NOT NULL,
    proof_key BLOB NOT NULL,
    proof_thumbprint BLOB NOT NULL,
    app_id TEXT NOT NULL,
    app_name TEXT NOT NULL,
    audience TEXT NOT NULL,
    address TEXT NOT NULL,
    binding_message TEXT NOT NULL,
    policy_version INTEGER NOT NULL,
    required_assurance TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    device_id TEXT NOT NULL,
    assurance TEXT NOT NULL,
    decided_at INTEGER NOT NULL,
    decision_hash BLOB NOT NULL,
    session_id TEXT NOT NULL
) STRICT;
-- The two states that can still change; both indexes stay as small as the number of open requests. They serve
-- statements that write the states out, alone or joined by OR in this order; not ones that bind them.
CREATE INDEX sign_in_open_by_user ON sign_in (user_id) WHERE state = 'approved' OR state = 'pending';
CREATE INDEX sign_in_open_by_expiry ON sign_in (expires_at) WHERE state = 'approved' OR state = 'pending';

CREATE TABLE prompt (
    id TEXT NOT NULL PRIMARY KEY,
    sign_in_id TEXT NOT NULL REFERENCES sign_in (id) ON DELETE CASCADE,
    device_id TEXT NOT NULL,
    credential_id BLOB NOT NULL,
    offer BLOB NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL
) STRICT;
CREATE INDEX prompt_by_sign_in ON prompt (sign_in_id);
CREATE INDEX prompt_by_device ON prompt (device_id, expires_at);

CREATE TABLE session (
    id TEXT NOT NULL PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenant (id),
    user_id TEXT NOT NULL REFERENCES user (id),
    device_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    access_pass_id TEXT NOT NULL,
    app_id TEXT NOT NULL,
    app_name TEXT NOT NULL,
    audience TEXT NOT NULL,
    amr TEXT NOT NULL,
    acr TEXT NOT NULL,
    assurance TEXT NOT NULL,
    proof_key BLOB NOT NULL,
    proof_thumbprint BLOB NOT NULL,
    auth_time INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    expires_at INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    refresh_hash BLOB NOT NULL,
    previous_hash BLOB NOT NULL,
    revoked_at INTEGER NOT NULL,
    revoke_reason TEXT NOT NULL
) STRICT;
CREATE INDEX session_by_user ON session (user_id, id);
CREATE INDEX session_by_device ON session (device_id);

CREATE TABLE audit_record (
    sequence INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    tenant_id TEXT NOT NULL,
    action TEXT NOT NULL,
    actor TEXT NOT NULL,
    subject TEXT NOT NULL,
    user_id TEXT NOT NULL,
    outcome TEXT NOT NULL,
    details TEXT NOT NULL
) STRICT;
CREATE INDEX audit_by_tenant ON audit_record (tenant_id, sequence);
CREATE INDEX audit_by_user ON audit_record (user_id, sequence);

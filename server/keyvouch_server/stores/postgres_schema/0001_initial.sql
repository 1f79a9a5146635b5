-- Version 1: the tables of keyvouch_server.domain, one per record class, and what wakes the other nodes.
-- Texts are compared byte by byte (COLLATE "C"), whatever the database's own language: pages and names depend on it.
-- Instants are seconds since the epoch. A table has the columns of SQLite's newest schema, in the same order.

CREATE TABLE tenant (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    name text COLLATE "C" NOT NULL,
    name_key text COLLATE "C" NOT NULL UNIQUE,
    home boolean NOT NULL,
    created_at bigint NOT NULL,
    key_lengths text COLLATE "C" NOT NULL
);

CREATE TABLE "user" (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    tenant_id text COLLATE "C" NOT NULL REFERENCES tenant,
    username text COLLATE "C" NOT NULL,
    username_key text COLLATE "C" NOT NULL,
    display_name text COLLATE "C" NOT NULL,
    role text COLLATE "C" NOT NULL,
    user_handle bytea NOT NULL UNIQUE,
    created_at bigint NOT NULL,
    number_misses bigint NOT NULL,
    locked_until bigint NOT NULL,
    kind text COLLATE "C" NOT NULL,
    default_method text COLLATE "C" NOT NULL,
    last_method text COLLATE "C" NOT NULL,
    flagged_at bigint NOT NULL,
    UNIQUE (tenant_id, username_key)
);
CREATE INDEX user_by_tenant ON "user" (tenant_id, id);

-- Every name that leads to a user; the login name itself is one of them.
CREATE TABLE login_name (
    tenant_id text COLLATE "C" NOT NULL REFERENCES tenant,
    name_key text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL REFERENCES "user" ON DELETE CASCADE,
    alias boolean NOT NULL,
    PRIMARY KEY (tenant_id, name_key)
);
CREATE INDEX login_name_by_user ON login_name (user_id);

CREATE TABLE user_group (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    tenant_id text COLLATE "C" NOT NULL REFERENCES tenant,
    name text COLLATE "C" NOT NULL,
    name_key text COLLATE "C" NOT NULL,
    description text COLLATE "C" NOT NULL,
    created_at bigint NOT NULL,
    UNIQUE (tenant_id, name_key)
);
CREATE INDEX user_group_by_tenant ON user_group (tenant_id, id);

CREATE TABLE group_member (
    group_id text COLLATE "C" NOT NULL REFERENCES user_group ON DELETE CASCADE,
    user_id text COLLATE "C" NOT NULL REFERENCES "user" ON DELETE CASCADE,
    tenant_id text COLLATE "C" NOT NULL REFERENCES tenant,
    PRIMARY KEY (group_id, user_id)
);
CREATE INDEX group_member_by_user ON group_member (user_id);

CREATE TABLE policy_version (
    tenant_id text COLLATE "C" NOT NULL REFERENCES tenant,
    version bigint NOT NULL,
    document text COLLATE "C" NOT NULL,
    created_at bigint NOT NULL,
    created_by text COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_id, version)
);

CREATE TABLE access_pass (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    tenant_id text COLLATE "C" NOT NULL REFERENCES tenant,
    user_id text COLLATE "C" NOT NULL UNIQUE REFERENCES "user",
    code_hash bytea NOT NULL,
    created_at bigint NOT NULL,
    start_at bigint NOT NULL,
    lifetime_minutes bigint NOT NULL,
    one_time boolean NOT NULL,
    used_at bigint NOT NULL,
    attempts bigint NOT NULL,
    binding text COLLATE "C" NOT NULL
);
CREATE INDEX access_pass_by_tenant ON access_pass (tenant_id, id);

CREATE TABLE registration (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    tenant_id text COLLATE "C" NOT NULL REFERENCES tenant,
    user_id text COLLATE "C" NOT NULL REFERENCES "user",
    session_id text COLLATE "C" NOT NULL,
    device_id text COLLATE "C" NOT NULL UNIQUE,
    token_hash bytea NOT NULL UNIQUE,
    statement bytea NOT NULL,
    channel_key bytea NOT NULL,
    display_name text COLLATE "C" NOT NULL,
    provider text COLLATE "C" NOT NULL,
    state text COLLATE "C" NOT NULL CHECK (state IN ('pending', 'complete')),
    created_at bigint NOT NULL,
    expires_at bigint NOT NULL,
    answer_hash bytea NOT NULL,
    tpm bytea NOT NULL,
    replaced_device_id text COLLATE "C" NOT NULL
);
CREATE INDEX registration_by_user ON registration (user_id);
CREATE INDEX registration_by_expiry ON registration (state, expires_at);

CREATE TABLE device (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    tenant_id text COLLATE "C" NOT NULL REFERENCES tenant,
    user_id text COLLATE "C" NOT NULL REFERENCES "user",
    display_name text COLLATE "C" NOT NULL,
    provider text COLLATE "C" NOT NULL,
    channel_key bytea NOT NULL UNIQUE,
    certificate bytea NOT NULL,
    registered_at bigint NOT NULL
);
CREATE INDEX device_by_user ON device (user_id, id);
CREATE INDEX device_by_tenant ON device (tenant_id, id);

CREATE TABLE credential (
    id bytea NOT NULL PRIMARY KEY,
    tenant_id text COLLATE "C" NOT NULL REFERENCES tenant,
    user_id text COLLATE "C" NOT NULL REFERENCES "user",
    device_id text COLLATE "C" NOT NULL REFERENCES device ON DELETE CASCADE,
    user_handle bytea NOT NULL,
    public_key bytea NOT NULL,
    sign_count bigint NOT NULL,
    backup_eligible boolean NOT NULL,
    aaguid bytea NOT NULL,
    attestation_object bytea NOT NULL,
    client_data bytea NOT NULL,
    assurance text COLLATE "C" NOT NULL,
    created_at bigint NOT NULL,
    card_authority text COLLATE "C" NOT NULL,
    card_certificates bytea NOT NULL,
    last_used_at bigint NOT NULL
);
CREATE INDEX credential_by_user ON credential (user_id);
CREATE INDEX credential_by_device ON credential (device_id);

-- `firmware_version` is 16 hexadecimal digits, `clock` decimal digits: both are unsigned numbers of 64 bits.
-- `findings`, `pcr_values` and `baseline` are JSON.
CREATE TABLE device_tpm (
    device_id text COLLATE "C" NOT NULL PRIMARY KEY REFERENCES device ON DELETE CASCADE,
    tenant_id text COLLATE "C" NOT NULL REFERENCES tenant,
    user_id text COLLATE "C" NOT NULL REFERENCES "user",
    endorsement_key_hash bytea NOT NULL,
    transcript bytea NOT NULL,
    proved_assurance text COLLATE "C" NOT NULL,
    anchor text COLLATE "C" NOT NULL,
    manufacturer text COLLATE "C" NOT NULL,
    model text COLLATE "C" NOT NULL,
    pin_limit bigint NOT NULL,
    channel_key_in_tpm boolean NOT NULL,
    health text COLLATE "C" NOT NULL CHECK (health IN ('unknown', 'good', 'drifted', 'failed')),
    reported_at bigint NOT NULL,
    findings text COLLATE "C" NOT NULL,
    firmware_version text COLLATE "C" NOT NULL,
    clock text COLLATE "C" NOT NULL,
    reset_count bigint NOT NULL,
    restart_count bigint NOT NULL,
    pcr_values text COLLATE "C" NOT NULL,
    baseline text COLLATE "C" NOT NULL
);
CREATE INDEX device_tpm_by_endorsement_key ON device_tpm (endorsement_key_hash);

CREATE TABLE key_replacement (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    tenant_id text COLLATE "C" NOT NULL REFERENCES tenant,
    device_id text COLLATE "C" NOT NULL REFERENCES device ON DELETE CASCADE,
    statement bytea NOT NULL,
    certificate bytea NOT NULL,
    state text COLLATE "C" NOT NULL CHECK (state IN ('pending', 'complete')),
    created_at bigint NOT NULL,
    expires_at bigint NOT NULL,
    answer_hash bytea NOT NULL
);
CREATE INDEX key_replacement_by_device ON key_replacement (device_id);
CREATE INDEX key_replacement_by_expiry ON key_replacement (expires_at);

-- A request that names nobody has the user_id of no user, and no tenant_id if it names no tenant: no references.
CREATE TABLE sign_in (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    tenant_id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    token_hash bytea NOT NULL,
    state text COLLATE "C" NOT NULL CHECK (state IN (
        'pending', 'approved', 'denied', 'reported', 'failed', 'expired', 'superseded', 'cancelled', 'consumed'
    )),
    number text COLLATE "C" NOT NULL,
    proof_key bytea NOT NULL,
    proof_thumbprint bytea NOT NULL,
    app_id text COLLATE "C" NOT NULL,
    app_name text COLLATE "C" NOT NULL,
    audience text COLLATE "C" NOT NULL,
    address text COLLATE "C" NOT NULL,
    binding_message text COLLATE "C" NOT NULL,
    policy_version bigint NOT NULL,
    required_assurance text COLLATE "C" NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint NOT NULL,
    device_id text COLLATE "C" NOT NULL,
    assurance text COLLATE "C" NOT NULL,
    decided_at bigint NOT NULL,
    decision_hash bytea NOT NULL,
    session_id text COLLATE "C" NOT NULL,
    same_device boolean NOT NULL,
    security_key boolean NOT NULL,
    refused_answers bigint NOT NULL,
    phishing_resistant boolean NOT NULL,
    known_client boolean NOT NULL,
    choices text COLLATE "C" NOT NULL,
    rules text COLLATE "C" NOT NULL,
    evidence bytea NOT NULL,
    offers bigint NOT NULL,
    after_misses boolean NOT NULL
);
-- The two states that can still change; both indexes stay as small as the number of open requests.
CREATE INDEX sign_in_open_by_user ON sign_in (user_id) WHERE state = 'approved' OR state = 'pending';
CREATE INDEX sign_in_open_by_expiry ON sign_in (expires_at) WHERE state = 'approved' OR state = 'pending';

CREATE TABLE prompt (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    sign_in_id text COLLATE "C" NOT NULL REFERENCES sign_in ON DELETE CASCADE,
    device_id text COLLATE "C" NOT NULL,
    credential_id bytea NOT NULL,
    offer bytea NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint NOT NULL
);
CREATE INDEX prompt_by_sign_in ON prompt (sign_in_id);
CREATE INDEX prompt_by_device ON prompt (device_id, expires_at);

CREATE TABLE session (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    tenant_id text COLLATE "C" NOT NULL REFERENCES tenant,
    user_id text COLLATE "C" NOT NULL REFERENCES "user",
    device_id text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    access_pass_id text COLLATE "C" NOT NULL,
    app_id text COLLATE "C" NOT NULL,
    app_name text COLLATE "C" NOT NULL,
    audience text COLLATE "C" NOT NULL,
    amr text COLLATE "C" NOT NULL,
    acr text COLLATE "C" NOT NULL,
    assurance text COLLATE "C" NOT NULL,
    proof_key bytea NOT NULL,
    proof_thumbprint bytea NOT NULL,
    auth_time bigint NOT NULL,
    created_at bigint NOT NULL,
    expires_at bigint NOT NULL,
    generation bigint NOT NULL,
    refresh_hash bytea NOT NULL,
    previous_hash bytea NOT NULL,
    revoked_at bigint NOT NULL,
    revoke_reason text COLLATE "C" NOT NULL,
    certificate_bound boolean NOT NULL,
    sign_in_id text COLLATE "C" NOT NULL,
    address text COLLATE "C" NOT NULL
);
CREATE INDEX session_by_user ON session (user_id, id);
CREATE INDEX session_by_device ON session (device_id);
CREATE INDEX session_by_tenant ON session (tenant_id, id);

-- Positions rise and are never used again; there are gaps where an act was undone.
CREATE TABLE audit_record (
    sequence bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    at bigint NOT NULL,
    tenant_id text COLLATE "C" NOT NULL,
    action text COLLATE "C" NOT NULL,
    actor text COLLATE "C" NOT NULL,
    subject text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    outcome text COLLATE "C" NOT NULL,
    details text COLLATE "C" NOT NULL,
    chain_number bigint NOT NULL,
    previous_hash bytea NOT NULL,
    hash bytea NOT NULL
);
CREATE INDEX audit_by_tenant ON audit_record (tenant_id, sequence);
CREATE INDEX audit_by_user ON audit_record (user_id, sequence);
CREATE UNIQUE INDEX audit_by_chain ON audit_record (tenant_id, chain_number) WHERE chain_number > 0;

CREATE TABLE audit_checkpoint (
    tenant_id text COLLATE "C" NOT NULL,
    chain_number bigint NOT NULL,
    hash bytea NOT NULL,
    at bigint NOT NULL,
    signature bytea NOT NULL,
    PRIMARY KEY (tenant_id, chain_number)
);

CREATE TABLE throttle (
    key text COLLATE "C" NOT NULL PRIMARY KEY,
    tenant_id text COLLATE "C" NOT NULL,
    arrival bigint NOT NULL
);
CREATE INDEX throttle_by_arrival ON throttle (arrival);

CREATE TABLE block (
    key text COLLATE "C" NOT NULL PRIMARY KEY,
    tenant_id text COLLATE "C" NOT NULL,
    user_id text COLLATE "C" NOT NULL,
    until bigint NOT NULL
);
CREATE INDEX block_by_end ON block (until);
CREATE INDEX block_by_user ON block (user_id);

CREATE TABLE risk_event (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    tenant_id text COLLATE "C" NOT NULL REFERENCES tenant,
    user_id text COLLATE "C" NOT NULL,
    kind text COLLATE "C" NOT NULL,
    at bigint NOT NULL,
    address text COLLATE "C" NOT NULL,
    subject text COLLATE "C" NOT NULL,
    message text COLLATE "C" NOT NULL,
    closed_at bigint NOT NULL,
    closed_by text COLLATE "C" NOT NULL
);
CREATE INDEX risk_event_by_tenant ON risk_event (tenant_id, at, id);
CREATE INDEX risk_event_by_user ON risk_event (user_id, at);
CREATE INDEX risk_event_open ON risk_event (tenant_id) WHERE closed_at = 0;

CREATE TABLE done_request (
    tenant_id text COLLATE "C" NOT NULL,
    actor text COLLATE "C" NOT NULL,
    request_id text COLLATE "C" NOT NULL,
    request_hash bytea NOT NULL,
    response bytea NOT NULL,
    at bigint NOT NULL,
    PRIMARY KEY (tenant_id, actor, request_id)
);
CREATE INDEX done_request_by_age ON done_request (at);

CREATE TABLE used_proof (
    id bytea NOT NULL PRIMARY KEY,
    expires_at bigint NOT NULL
);
CREATE INDEX used_proof_by_end ON used_proof (expires_at);

-- The last group of works that a server has committed: a commit whose answer was lost with its connection is looked up
-- here. (The database's own number of a transaction does not tell: after a crash it may be given to another one.)
CREATE TABLE writer (
    id text COLLATE "C" NOT NULL PRIMARY KEY,
    last_group bigint NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);

-- What other nodes' streams wait for. A notification leaves with the commit of the act, or not at all; it says which
-- row to look at and holds nothing secret. `LISTEN keyvouch` hears them; their forms are in `postgres_watch`. Each is of
-- one thing and short: a longer one than 8000 bytes would undo the act.

-- Those for a client with a security key, or for a device's own sign-in, come to no stream.
CREATE FUNCTION tell_of_prompt() RETURNS trigger LANGUAGE plpgsql SET search_path = keyvouch AS $$
BEGIN
    IF EXISTS (SELECT FROM sign_in WHERE id = NEW.sign_in_id AND NOT security_key AND NOT same_device) THEN
        PERFORM pg_notify('keyvouch', 'prompt ' || NEW.device_id || ' ' || NEW.id);
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER prompt_arrived AFTER INSERT ON prompt FOR EACH ROW EXECUTE FUNCTION tell_of_prompt();

-- The device that has decided gets the outcome of its answer, and nothing is withdrawn from it. After an approval has
-- been consumed there is nothing left to withdraw.
CREATE FUNCTION tell_of_sign_in() RETURNS trigger LANGUAGE plpgsql SET search_path = keyvouch AS $$
DECLARE
    answered text := '';
    prompted record;
BEGIN
    PERFORM pg_notify('keyvouch', 'sign_in ' || NEW.id);
    IF NEW.security_key OR NEW.same_device OR NEW.state = 'consumed' THEN
        RETURN NULL;
    END IF;
    IF OLD.state = 'pending' AND NEW.state IN ('approved', 'denied', 'reported', 'failed') THEN
        answered := NEW.device_id;
    END IF;
    FOR prompted IN SELECT device_id, id FROM prompt WHERE sign_in_id = NEW.id AND device_id <> answered LOOP
        PERFORM pg_notify('keyvouch', 'withdrawn ' || prompted.device_id || ' ' || prompted.id || ' ' || NEW.state);
    END LOOP;
    RETURN NULL;
END $$;
CREATE TRIGGER sign_in_changed AFTER UPDATE OF state ON sign_in FOR EACH ROW
    WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION tell_of_sign_in();

CREATE FUNCTION tell_of_device() RETURNS trigger LANGUAGE plpgsql SET search_path = keyvouch AS $$
BEGIN
    PERFORM pg_notify('keyvouch', 'device ' || OLD.id);
    RETURN NULL;
END $$;
CREATE TRIGGER device_removed AFTER DELETE ON device FOR EACH ROW EXECUTE FUNCTION tell_of_device();

-- Version 5: names, groups, guests, budgets, risk events, idempotent requests, the audit chain.

ALTER TABLE user ADD COLUMN kind TEXT NOT NULL DEFAULT 'member';
ALTER TABLE user ADD COLUMN default_method TEXT NOT NULL DEFAULT '';
ALTER TABLE user ADD COLUMN last_method TEXT NOT NULL DEFAULT '';
ALTER TABLE user ADD COLUMN flagged_at INTEGER NOT NULL DEFAULT 0;
-- Sign-ins that are begun are counted in `throttle` from now on.
ALTER TABLE user DROP COLUMN begins_window;
ALTER TABLE user DROP COLUMN begins;
ALTER TABLE user DROP COLUMN key_begins;
CREATE INDEX user_by_tenant ON user (tenant_id, id);

-- How many security keys were registered with ids of how many bytes.
ALTER TABLE tenant ADD COLUMN key_lengths TEXT NOT NULL DEFAULT '';
UPDATE tenant SET key_lengths = coalesce((
    SELECT group_concat(bytes || ':' || many, ' ') FROM (
        SELECT c.tenant_id AS owner, length(c.id) AS bytes, count(*) AS many
        FROM credential AS c JOIN device AS d ON d.id = c.device_id
        WHERE d.provider = 'fido2' GROUP BY c.tenant_id, length(c.id)
    ) WHERE owner = tenant.id
), '');

-- Every name that leads to a user; the login name itself is one of them.
CREATE TABLE login_name (
    tenant_id TEXT NOT NULL REFERENCES tenant (id),
    name_key TEXT NOT NULL,
    name TEXT NOT NULL,
    user_id TEXT NOT NULL REFERENCES user (id) ON DELETE CASCADE,
    alias INTEGER NOT NULL CHECK (alias IN (0, 1)),
    PRIMARY KEY (tenant_id, name_key)
) STRICT, WITHOUT ROWID;
CREATE INDEX login_name_by_user ON login_name (user_id);
INSERT INTO login_name (tenant_id, name_key, name, user_id, alias)
    SELECT tenant_id, username_key, username, id, 0 FROM user;

CREATE TABLE user_group (
    id TEXT NOT NULL PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenant (id),
    name TEXT NOT NULL,
    name_key TEXT NOT NULL,
    description TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (tenant_id, name_key)
) STRICT;
CREATE INDEX user_group_by_tenant ON user_group (tenant_id, id);

CREATE TABLE group_member (
    group_id TEXT NOT NULL REFERENCES user_group (id) ON DELETE CASCADE,
    user_id TEXT NOT NULL REFERENCES user (id) ON DELETE CASCADE,
    tenant_id TEXT NOT NULL REFERENCES tenant (id),
    PRIMARY KEY (group_id, user_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX group_member_by_user ON group_member (user_id);

-- The one device that a pass may register.
ALTER TABLE access_pass ADD COLUMN binding TEXT NOT NULL DEFAULT '';

ALTER TABLE sign_in ADD COLUMN phishing_resistant INTEGER NOT NULL DEFAULT 0 CHECK (phishing_resistant IN (0, 1));
ALTER TABLE sign_in ADD COLUMN known_client INTEGER NOT NULL DEFAULT 0 CHECK (known_client IN (0, 1));
ALTER TABLE sign_in ADD COLUMN choices TEXT NOT NULL DEFAULT '';
-- What each rule said (JSON), and what approved it: for explanations and receipts.
ALTER TABLE sign_in ADD COLUMN rules TEXT NOT NULL DEFAULT '';
ALTER TABLE sign_in ADD COLUMN evidence BLOB NOT NULL DEFAULT x'';

ALTER TABLE session ADD COLUMN sign_in_id TEXT NOT NULL DEFAULT '';
ALTER TABLE session ADD COLUMN address TEXT NOT NULL DEFAULT '';
UPDATE session SET sign_in_id = coalesce((SELECT id FROM sign_in WHERE session_id = session.id), '');
CREATE INDEX session_by_tenant ON session (tenant_id, id);

-- Records from before this version are not in the chain: their number is 0.
ALTER TABLE audit_record ADD COLUMN chain_number INTEGER NOT NULL DEFAULT 0;
ALTER TABLE audit_record ADD COLUMN previous_hash BLOB NOT NULL DEFAULT x'';
ALTER TABLE audit_record ADD COLUMN hash BLOB NOT NULL DEFAULT x'';
CREATE UNIQUE INDEX audit_by_chain ON audit_record (tenant_id, chain_number) WHERE chain_number > 0;

CREATE TABLE audit_checkpoint (
    tenant_id TEXT NOT NULL,
    chain_number INTEGER NOT NULL,
    hash BLOB NOT NULL,
    at INTEGER NOT NULL,
    signature BLOB NOT NULL,
    PRIMARY KEY (tenant_id, chain_number)
) STRICT, WITHOUT ROWID;

CREATE TABLE throttle (
    key TEXT NOT NULL PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    arrival INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX throttle_by_arrival ON throttle (arrival);

CREATE TABLE block (
    key TEXT NOT NULL PRIMARY KEY,
    tenant_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    until INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX block_by_end ON block (until);
CREATE INDEX block_by_user ON block (user_id);

CREATE TABLE risk_event (
    id TEXT NOT NULL PRIMARY KEY,
    tenant_id TEXT NOT NULL REFERENCES tenant (id),
    user_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    at INTEGER NOT NULL,
    address TEXT NOT NULL,
    subject TEXT NOT NULL,
    message TEXT NOT NULL,
    closed_at INTEGER NOT NULL,
    closed_by TEXT NOT NULL
) STRICT;
CREATE INDEX risk_event_by_tenant ON risk_event (tenant_id, at, id);
CREATE INDEX risk_event_by_user ON risk_event (user_id, at);
CREATE INDEX risk_event_open ON risk_event (tenant_id) WHERE closed_at = 0;

CREATE TABLE done_request (
    tenant_id TEXT NOT NULL,
    actor TEXT NOT NULL,
    request_id TEXT NOT NULL,
    request_hash BLOB NOT NULL,
    response BLOB NOT NULL,
    at INTEGER NOT NULL,
    PRIMARY KEY (tenant_id, actor, request_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX done_request_by_age ON done_request (at);

CREATE TABLE used_proof (
    id BLOB NOT NULL PRIMARY KEY,
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX used_proof_by_end ON used_proof (expires_at);

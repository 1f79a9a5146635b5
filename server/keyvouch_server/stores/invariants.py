"""What must never be found in a store, in words and in SQL that SQLite and PostgreSQL both understand.

Each query returns the rows that break the rule; the first column names the row. What is not there is looked for with
joins and EXCEPT: PostgreSQL reads a subquery behind NOT IN again for each row, once its answer is large.
Not here: what a database checks by its own means (`sqlite_upkeep`, `postgres_upkeep`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MOST: Final = 20
"""So many rows are named of each kind of problem."""

INVARIANTS: Final = {
    "a consumed sign-in without its session": """
        SELECT sign_in.id FROM sign_in LEFT JOIN session ON session.id = sign_in.session_id
        WHERE sign_in.state = 'consumed' AND session.id IS NULL""",
    "a session opened by more than one sign-in": """
        SELECT session_id FROM sign_in WHERE session_id <> '' GROUP BY session_id HAVING count(*) > 1""",
    "a session by approval without a consumed sign-in": """
        SELECT session.id FROM session LEFT JOIN sign_in
        ON sign_in.session_id = session.id AND sign_in.state = 'consumed'
        WHERE session.kind = 'approval' AND sign_in.id IS NULL""",
    "a session that names another sign-in than the one it came from": """
        SELECT session.id FROM session JOIN sign_in ON sign_in.session_id = session.id
        WHERE session.sign_in_id NOT IN ('', sign_in.id)""",
    "a name of a user of another tenant": """
        SELECT login_name.name FROM login_name JOIN "user" ON "user".id = login_name.user_id
        WHERE login_name.tenant_id <> "user".tenant_id""",
    "a user without the login name they are shown with": """
        SELECT "user".id FROM "user" LEFT JOIN login_name ON login_name.tenant_id = "user".tenant_id
        AND login_name.name_key = "user".username_key AND login_name.user_id = "user".id AND NOT login_name.alias
        WHERE login_name.user_id IS NULL""",
    "a user with more than one login name": """
        SELECT user_id FROM login_name WHERE NOT alias GROUP BY user_id HAVING count(*) > 1""",
    "a member of a group of another tenant": """
        SELECT group_member.group_id || ' ' || group_member.user_id FROM group_member
        JOIN user_group ON user_group.id = group_member.group_id JOIN "user" ON "user".id = group_member.user_id
        WHERE group_member.tenant_id <> "user".tenant_id OR group_member.tenant_id <> user_group.tenant_id""",
    "a record in another tenant than its user": """
        SELECT kept.id FROM (SELECT id, tenant_id, user_id FROM access_pass
        UNION ALL SELECT id, tenant_id, user_id FROM registration
        UNION ALL SELECT id, tenant_id, user_id FROM device
        UNION ALL SELECT id, tenant_id, user_id FROM session) AS kept
        JOIN "user" ON "user".id = kept.user_id WHERE "user".tenant_id <> kept.tenant_id""",
    "a sign-in that could be decided in two ways": """
        SELECT id FROM sign_in WHERE same_device AND security_key""",
    "a device without a credential": """
        SELECT device.id FROM device LEFT JOIN credential ON credential.device_id = device.id
        WHERE credential.id IS NULL""",
    "a device whose registration is not complete": """
        SELECT device.id FROM device JOIN registration ON registration.device_id = device.id
        WHERE registration.state <> 'complete'""",
    "a credential that belongs to another user than its device": """
        SELECT credential.id FROM credential JOIN device ON device.id = credential.device_id
        WHERE credential.user_id <> device.user_id OR credential.tenant_id <> device.tenant_id""",
    "a TPM that belongs to another user than its device": """
        SELECT device_tpm.device_id FROM device_tpm JOIN device ON device.id = device_tpm.device_id
        WHERE device_tpm.user_id <> device.user_id OR device_tpm.tenant_id <> device.tenant_id""",
    "a TPM that is registered in more than one tenant": """
        SELECT endorsement_key_hash FROM device_tpm
        GROUP BY endorsement_key_hash HAVING count(DISTINCT tenant_id) > 1""",
    "a user with more than one device in one TPM": """
        SELECT user_id FROM device_tpm GROUP BY user_id, endorsement_key_hash HAVING count(*) > 1""",
    "a TPM without the transcript of its registration": """
        SELECT device_tpm.device_id FROM device_tpm JOIN registration ON registration.device_id = device_tpm.device_id
        WHERE device_tpm.transcript <> registration.tpm""",
    "a key that counts for more than its TPM proved": """
        SELECT credential.id FROM credential JOIN device_tpm ON device_tpm.device_id = credential.device_id
        WHERE (device_tpm.health = 'failed') = (credential.assurance = device_tpm.proved_assurance)""",
    "a key with certificates and no authority, or the other way round": """
        SELECT id FROM credential WHERE (card_authority = '') <> (length(card_certificates) = 0)""",
    "a key replacement in another tenant than its device": """
        SELECT key_replacement.id FROM key_replacement JOIN device ON device.id = key_replacement.device_id
        WHERE key_replacement.tenant_id <> device.tenant_id""",
    "a user with more than one access pass": """
        SELECT user_id FROM access_pass GROUP BY user_id HAVING count(*) > 1""",
    "a session without an audit record of its opening": """
        SELECT session.id FROM (SELECT user_id, created_at FROM session EXCEPT SELECT user_id, at FROM audit_record
        EXCEPT SELECT user_id, at - 1 FROM audit_record) AS untold
        JOIN session ON session.user_id = untold.user_id AND session.created_at = untold.created_at""",
    "a device without an audit record of its registration": """
        SELECT device.id FROM (SELECT user_id, registered_at FROM device EXCEPT SELECT user_id, at FROM audit_record
        EXCEPT SELECT user_id, at - 1 FROM audit_record) AS untold
        JOIN device ON device.user_id = untold.user_id AND device.registered_at = untold.registered_at""",
    "a decided sign-in without an audit record of the decision": """
        SELECT sign_in.id FROM sign_in LEFT JOIN (SELECT subject FROM audit_record
        WHERE action IN ('sign_in.approve', 'sign_in.deny', 'sign_in.report', 'sign_in.mismatch')) AS told
        ON told.subject = sign_in.id WHERE sign_in.decided_at > 0 AND told.subject IS NULL""",
    "an audit chain with a gap": """
        SELECT tenant_id FROM audit_record WHERE chain_number > 0 GROUP BY tenant_id
        HAVING count(*) <> max(chain_number) OR min(chain_number) <> 1""",
    "an audit record that does not continue the one before it": """
        SELECT record.sequence FROM audit_record AS record JOIN audit_record AS before
        ON before.tenant_id = record.tenant_id AND before.chain_number = record.chain_number - 1
        AND before.chain_number > 0 WHERE record.chain_number > 1
        AND (record.previous_hash <> before.hash OR record.sequence <= before.sequence)""",
}
"""What must never be found, in words and in SQL. An audit record bears the instant of its act or the second after."""


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What a check found: the schema's version, records by table, and a sentence for each thing that is wrong.

    `notes` say what could not be looked at, which is no fault of the store.
    """

    schema_version: int
    counts: dict[str, int]
    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()


def told(sentence: str, row: object) -> str:
    """The problem of one row, by what its first column holds; bytes in hexadecimal digits."""
    return f"{sentence}: {row.hex().upper() if isinstance(row, bytes) else row}"


def another_version(found: int, known: int) -> CheckReport:
    """The report of a store whose schema this program does not know."""
    return CheckReport(found, {}, (f"the schema has version {found}; this program's is {known}",))

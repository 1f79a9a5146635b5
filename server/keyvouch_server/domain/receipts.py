"""Receipts: what the server says of a sign-in that became a session, for its identity key to sign.

The form and its verification are `keyvouch.receipt`. Not here: who may have a receipt, and the signature.
"""

from __future__ import annotations

from keyvouch import cbor
from keyvouch.errors import MalformedError
from keyvouch.ids import CredentialId, ServerId
from keyvouch.receipt import Receipt
from keyvouch_server.domain.model import Session, SignIn, User
from keyvouch_server.domain.oversight_model import AuditRecord

__all__ = ["receipt_of"]


def receipt_of(
    sign_in: SignIn,
    session: Session,
    user: User,
    record: AuditRecord,
    *,
    server_id: ServerId,
    identity_key: bytes,
    rp_id: str,
) -> Receipt | None:
    """The receipt of a sign-in that became this session, or None where no evidence of it was kept."""
    evidence = _evidence_of(sign_in)
    if evidence is None:
        return None
    decision, credential_id, client_data, authenticator_data, signature, user_handle, public_key = evidence
    return Receipt(
        server_id=server_id,
        identity_key=identity_key,
        tenant_id=sign_in.tenant_id,
        user_id=sign_in.user_id,
        username=user.username,
        device_id=sign_in.device_id,
        session_id=session.id,
        sign_in_id=sign_in.id,
        decision=decision,
        credential_id=CredentialId(credential_id),
        client_data=client_data,
        authenticator_data=authenticator_data,
        signature=signature,
        user_handle=user_handle,
        public_key=public_key,
        number=sign_in.number,
        assurance=session.assurance,
        acr=session.acr,
        amr=session.amr,
        policy_version=sign_in.policy_version,
        rp_id=rp_id,
        decided_at=sign_in.decided_at,
        consumed_at=session.created_at,
        audit_number=record.chain_number,
        audit_hash=record.hash,
    )


def _evidence_of(sign_in: SignIn) -> list[bytes] | None:
    """The statement and the parts of the assertion, in the order of their keys 1 to 7."""
    try:
        document = cbor.decode(sign_in.evidence, max_depth=1)
    except MalformedError:
        return None
    parts = [document.get(key) for key in range(1, 8)] if isinstance(document, dict) else []
    found = [part for part in parts if isinstance(part, bytes)]
    return found if len(found) == 7 else None

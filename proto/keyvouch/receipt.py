"""Receipts: what a server signs of one sign-in, so that anybody can verify it later, without the server.

    receipt = canonical CBOR of {1: statement, 2: signature of the server's identity key (purpose `receipt`)}

The statement says who signed in where and how, and holds the evidence itself: the decision that the person's key
signed, the assertion with the key to verify it, and the place of the sign-in in the audit log. So a receipt rests on
two signatures that no party alone can make: the server cannot make up an approval of a key it has not got, and nobody
else can say what the server made of it.

`verify_receipt` is the only way to a `VerifiedReceipt`. Not here: whether the session was ended since, who the person
behind the user id is, and whether the key is the user's, for which there is the server's word.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from keyvouch import cbor
from keyvouch.attestation import CredentialRecord, VerifiedAssertion, verify_assertion
from keyvouch.cose import CoseKey
from keyvouch.errors import EvidenceError, KeyvouchError, MalformedError, Reason
from keyvouch.ids import CredentialId, DeviceId, ServerId, SessionId, SignInId, TenantId, UserId
from keyvouch.proofs import load_proof_key, spki_sha256, verify_proof
from keyvouch.statement import Decision, DecisionStatement, Purpose, SignInOffer, challenge
from keyvouch.webauthn import AuthenticatorData

__all__ = ["Receipt", "VerifiedReceipt", "seal", "verify_receipt"]

VERSION: Final = 1
MAX_RECEIPT: Final = 64 * 1024
"""Longest receipt anyone here parses, in bytes."""
_PHISHING_RESISTANT: Final = "phishing-resistant"


@dataclass(frozen=True, slots=True)
class Receipt:
    """The statement of a receipt. Field n of this class is key n + 1 of the map; key 1 is the version.

    `identity_key` is DER SubjectPublicKeyInfo. `decision` to `public_key` are the evidence as received: the decision
    statement, the parts of the assertion (`user_handle` empty where there was none) and the COSE key. `number` is what
    the client showed, `amr` words with spaces between them. `audit_number` and `audit_hash` are of the record of this
    sign-in in the tenant's audit chain.
    """

    server_id: ServerId
    identity_key: bytes
    tenant_id: TenantId
    user_id: UserId
    username: str
    device_id: DeviceId
    session_id: SessionId
    sign_in_id: SignInId
    decision: bytes
    credential_id: CredentialId
    client_data: bytes
    authenticator_data: bytes
    signature: bytes
    user_handle: bytes
    public_key: bytes
    number: str
    assurance: str
    acr: str
    amr: str
    policy_version: int
    rp_id: str
    decided_at: int
    consumed_at: int
    audit_number: int
    audit_hash: bytes

    def encode(self) -> bytes:
        """Canonical CBOR of the statement, which the identity key signs."""
        return cbor.encode({1: VERSION, **{key: getattr(self, name) for key, name, _ in _FIELDS}})

    @classmethod
    def parse(cls, encoded: bytes) -> Receipt:
        """Parse a statement. Raises `EvidenceError(RECEIPT)`."""
        document = _map(encoded, 1 + len(_FIELDS))
        if type(document[1]) is not int or document[1] != VERSION:
            raise _refuse("it is of a version that this program does not know")
        for key, name, kind in _FIELDS:
            if type(document[key]) is not kind:
                raise _refuse(f"its {name.replace('_', ' ')} is not of the right type")
        values: dict[str, object] = {name: document[key] for key, name, _ in _FIELDS}
        return cls(**values)  # type: ignore[arg-type]  # the types are those of the table


_TYPES: Final[dict[str, type]] = {"bytes": bytes, "ServerId": bytes, "CredentialId": bytes, "int": int}
_FIELDS: Final = tuple((n, f.name, _TYPES.get(str(f.type), str)) for n, f in enumerate(fields(Receipt), start=2))


@dataclass(frozen=True, slots=True)
class VerifiedReceipt:
    """A receipt that holds: what the server says, what the person was asked, and what their key signed.

    `pinned`: the server is the expected one; else it is whichever has this key.
    """

    receipt: Receipt
    offer: SignInOffer
    assertion: VerifiedAssertion
    pinned: bool


def seal(statement: bytes, signature: bytes) -> bytes:
    """A receipt of its statement and the signature over it."""
    return cbor.encode({1: statement, 2: signature})


def verify_receipt(data: bytes, *, server_id: ServerId | None) -> VerifiedReceipt:
    """Verify a receipt of the server with this id, or, with None, of whichever server it names.

    Checks, in this order:

    1. envelope and statement are well-formed
    2. the server is the expected one, and its id is the hash of the identity key in the receipt
    3. the identity key signed the statement
    4. the decision is an approval, with the number that the client showed
    5. the offer in it names the same server, tenant, user, device, credential, sign-in and policy version, and both
       instants are before its end
    6. the assertion over the decision verifies with the key: its credential id, presence and verification of the user,
       its signature, and its origin: at this RP ID the device's, or, in a phishing-resistant sign-in, the client's own

    Raises `EvidenceError(RECEIPT)` with the first that fails; `cause` in its metadata is the reason of the verifier.
    """
    envelope = _map(data, 2)
    statement, signature = envelope[1], envelope[2]
    if not isinstance(statement, bytes) or not isinstance(signature, bytes):
        raise _refuse("it is not a statement with a signature")
    receipt = Receipt.parse(statement)
    if server_id is not None and receipt.server_id != server_id:
        raise _refuse("it is another server's")
    _check_server(receipt, statement, signature)
    offer = _check_decision(receipt)
    return VerifiedReceipt(receipt, offer, _check_assertion(receipt), pinned=server_id is not None)


def _check_server(receipt: Receipt, statement: bytes, signature: bytes) -> None:
    try:
        key = load_proof_key(receipt.identity_key)
        if spki_sha256(key) != receipt.server_id:
            raise _refuse("its key is not the one that the server's id stands for")
        verify_proof(key, Purpose.RECEIPT, statement, signature=signature)
    except MalformedError as error:
        raise _refuse("its key is not a server's", error) from None
    except EvidenceError as error:
        raise error if error.reason is Reason.RECEIPT else _refuse("the server did not sign it", error) from None


def _check_decision(receipt: Receipt) -> SignInOffer:
    try:
        decision = DecisionStatement.parse(receipt.decision)
        offer = SignInOffer.parse(decision.offer)
    except MalformedError as error:
        raise _refuse("what the person's key signed is not a decision", error) from None
    if decision.decision is not Decision.APPROVE:
        raise _refuse("what the person decided is not an approval")
    if decision.number != receipt.number:
        raise _refuse("the number that was typed is not the one that was shown")
    for name in ("server_id", "tenant_id", "user_id", "device_id", "credential_id", "sign_in_id", "policy_version"):
        if getattr(offer, name) != getattr(receipt, name):
            raise _refuse(f"the person approved something with another {name.replace('_', ' ')}")
    if not max(receipt.decided_at, receipt.consumed_at) < offer.expires_at:
        raise _refuse("the approval had run out before it was used")
    return offer


def _check_assertion(receipt: Receipt) -> VerifiedAssertion:
    origins = [f"keyvouch-agent://{receipt.rp_id}"]
    if receipt.acr == _PHISHING_RESISTANT:
        origins.append(f"keyvouch-client://{receipt.rp_id}")
    try:
        # What the key's counter and backup flag have to be, only the server knew, and it says that it looked.
        record = CredentialRecord(
            credential_id=receipt.credential_id,
            public_key=CoseKey(receipt.public_key),
            sign_count=0,
            user_handle=receipt.user_handle,
            backup_eligible=AuthenticatorData(receipt.authenticator_data).backup_eligible,
        )
        return verify_assertion(
            credential=record,
            credential_id=receipt.credential_id,
            client_data=receipt.client_data,
            authenticator_data=receipt.authenticator_data,
            signature=receipt.signature,
            user_handle=None,
            challenge=challenge(Purpose.SIGN_IN, receipt.decision),
            rp_id=receipt.rp_id,
            origins=origins,
            require_user_verification=True,
        )
    except KeyvouchError as error:
        raise _refuse("the person's key did not sign the decision", error) from None


def _map(encoded: bytes, size: int) -> dict[int, object]:
    """Decode a map with exactly the keys 1 to `size`."""
    if len(encoded) > MAX_RECEIPT:
        raise _refuse(f"it is longer than {MAX_RECEIPT} bytes")
    try:
        value = cbor.decode(encoded, max_depth=1)
    except MalformedError as error:
        raise _refuse("it is not canonical CBOR", error) from None
    if not isinstance(value, dict) or value.keys() != set(range(1, size + 1)):
        raise _refuse("it is not a map with the fields of a receipt")
    return {key: field for key, field in value.items() if isinstance(key, int)}


def _refuse(why: str, cause: KeyvouchError | None = None) -> EvidenceError:
    more = "" if cause is None else f" ({cause.message.rstrip('.')})"
    return EvidenceError(
        Reason.RECEIPT,
        f"This receipt proves nothing: {why}{more}.",
        fix="Take it from the server again; nothing that was changed on its way is one.",
        metadata={} if cause is None else {"cause": cause.reason.value},
    )

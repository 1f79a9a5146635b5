"""Proofs of possession at a resource server: a token that is bound to a key counts with the proof of this very call.

So a token that was copied, also by another resource server, opens nothing (P15). Not here: tokens (`access`), tokens
that are bound to a certificate (`access.check_certificate`), and how proofs are made (`call_proofs`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterable

from keyvouch import base64url
from keyvouch.call_proof import METADATA_KEY, WINDOW_SECONDS, verify_call_proof
from keyvouch.errors import EvidenceError, MalformedError, Reason, UnauthenticatedError
from keyvouch.ids import ServerId
from keyvouch.tokens import AccessTokenClaims

__all__ = ["ProofChecks"]


class ProofChecks:
    """Holds the calls of one resource server against the keys that their tokens name.

    `server_id` is that of the Keyvouch server, 32 bytes; None where no proofs are asked for. A proof is good once: used
    ones are remembered here for as long as they would count, so each process of a resource server has a memory of its
    own. May be used from several threads.
    """

    def __init__(self, server_id: ServerId | None) -> None:
        self._server_id = server_id
        self._used: dict[bytes, int] = {}
        self._lock = threading.Lock()

    def check(
        self,
        claims: AccessTokenClaims,
        token: str,
        *,
        method: str,
        metadata: Iterable[tuple[str, str | bytes]] | None,
        now: int,
    ) -> None:
        """Let a call pass that its caller has proved, or that has a token which names no key.

        Raises `UnauthenticatedError` with PROOF_REQUIRED, PROOF_INVALID or PROOF_REPLAYED.
        """
        if self._server_id is None or not claims.confirmation:
            return
        sent = [value for key, value in metadata or () if key == METADATA_KEY]
        if not sent:
            raise UnauthenticatedError(
                Reason.PROOF_REQUIRED,
                "This call has to be proved with the key of the session.",
                fix="Send a proof with each call: use `Session.call_credentials` or `Session.proved_metadata`.",
            )
        try:
            verified = verify_call_proof(
                sent[0] if len(sent) == 1 and isinstance(sent[0], bytes) else b"",
                key_thumbprint=_thumbprint(claims),
                server_id=self._server_id,
                method=method,
                access_token=token,
                now=now,
            )
        except (EvidenceError, MalformedError) as error:
            raise UnauthenticatedError(error.reason, error.message, fix=error.fix, metadata=error.metadata) from error
        self._use(verified.id, verified.issued_at + WINDOW_SECONDS, now)

    def _use(self, proof: bytes, until: int, now: int) -> None:
        with self._lock:
            if proof in self._used:
                raise UnauthenticatedError(
                    Reason.PROOF_REPLAYED, "The proof of this call was used before.", fix="Make a proof for each call."
                )
            for old in [one for one, end in self._oldest() if end < now]:
                del self._used[old]
            self._used[proof] = until

    def _oldest(self) -> list[tuple[bytes, int]]:
        """A few of those that came first: as many are looked at for each call, so that none pays for many."""
        return [pair for pair, _ in zip(self._used.items(), range(4), strict=False)]


def _thumbprint(claims: AccessTokenClaims) -> bytes:
    try:
        return base64url.decode(claims.confirmation)
    except ValueError:
        return b""

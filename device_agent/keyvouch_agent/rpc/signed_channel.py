"""Mutual TLS with a key that can only sign: the one module that touches gRPC's experimental custom signer.

What gRPC does with a signer, as experiments with grpcio 1.80 to 1.85 showed, and what is done about it here:

    it calls it once per TCP connection, on a      a signature is made on a thread of its own; a call that blocks
    thread of its own, not the event loop's        would keep that thread of gRPC from its other connections
    an answer given inside of that very call       the answer comes from the other thread, always
    leaves the handshake hanging for good
    it cancels also what is finished, and takes    cancelling drops the callback
    late answers to a cancelled handshake
    its callback keeps the connection alive, the   nothing holds the callback but the signature under way, and no
    connection the signer, and a thread of gRPC    exception the frame it is called in; every channel is closed
    the program, until all of it is freed
    it tells the caller of a failed signature      the `DeviceError` is kept and told instead of gRPC's words
    UNAVAILABLE, with the text in the details

Only ECDSA on P-256 with SHA-256 is signed: gRPC takes it from the certificate, in TLS 1.3 and in 1.2.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Final, TypeAlias

import grpc
from grpc import experimental

from keyvouch.errors import DeviceError, Reason
from keyvouch_agent.channel_keys import ChannelKey

__all__ = ["ChannelSigner", "signed_credentials"]

Complete: TypeAlias = Callable[[bytes | Exception], None]
"""gRPC's callback for the signature, or for what went wrong."""

_ES256: Final = experimental.PrivateKeySignatureAlgorithm.ECDSA_SECP256R1_SHA256


class ChannelSigner:
    """Signs handshakes with a channel key. `failure` is why it could not sign last time, None once it could."""

    def __init__(self, key: ChannelKey) -> None:
        self.failure: DeviceError | None = None
        self._key = key

    def __call__(self, message: bytes, algorithm: int, complete: Complete) -> Callable[[], None]:
        """Begin to sign, for gRPC; what it gets back cancels."""
        signing = _Signing(lambda: self._sign(message, algorithm), complete)
        threading.Thread(target=signing.run, name="channel-key", daemon=True).start()
        return signing.cancel

    def _sign(self, message: bytes, algorithm: int) -> bytes | Exception:
        try:
            if algorithm != _ES256:
                raise _wrong_algorithm()
            signature = self._key.sign(message)
        except DeviceError as error:
            self.failure = error
            return RuntimeError(error.reason.value)
        self.failure = None
        return signature


class _Signing:
    """One signature under way, and whom to tell: the callback is in no frame that an exception could keep alive."""

    def __init__(self, sign: Callable[[], bytes | Exception], complete: Complete) -> None:
        self._sign = sign
        self._complete: Complete | None = complete

    def run(self) -> None:
        answer: bytes | Exception = RuntimeError("the signer failed")
        try:
            answer = self._sign()
        finally:
            self._tell(answer)

    def cancel(self) -> None:
        self._complete = None

    def _tell(self, answer: bytes | Exception) -> None:
        complete, self._complete = self._complete, None
        if complete is not None:
            complete(answer)


def signed_credentials(signer: ChannelSigner, *, chain_pem: bytes, root_pem: bytes) -> grpc.ChannelCredentials:
    """Credentials of a client that shows `chain_pem` and trusts what `root_pem` has issued."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", experimental.ExperimentalApiWarning)
        credentials: grpc.ChannelCredentials = experimental.ssl_channel_credentials_with_custom_signer(
            private_key_sign_fn=signer, root_certificates=root_pem, certificate_chain=chain_pem
        )
    return credentials


def _wrong_algorithm() -> DeviceError:
    return DeviceError(
        Reason.UNSUPPORTED,
        "The handshake asks for another signature than ECDSA on P-256 with SHA-256.",
        fix="Enrol this device again; if it goes on, tell your administrator.",
    )

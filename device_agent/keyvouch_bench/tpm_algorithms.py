"""TPMs that lack algorithms, as chips of some vendors do: a TCTI in front of a complete one.

    with AlgorithmFilterTcti(open_tcti(tpm.tcti), RSA_ONLY) as tcti, ESAPI(tcti) as esys:
        ...

It takes the missing kinds out of what TPM2_GetCapability answers, and refuses to make or load them with the response
code of the reference implementation. The endorsement keys and certificates of the chip behind stay where they are:
`Profile.RSA_EK` of `keyvouch_bench.swtpm` has none with a curve.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Final

from keyvouch.attestation.tpm_wire import TpmAlgorithm
from keyvouch_bench.tpm_tcti import ExchangeTcti, Send, command_code, response

P256: Final = 0x0003
P384: Final = 0x0004

_GET_CAPABILITY: Final = 0x0000017A
_TEST_PARMS: Final = 0x0000018A
# Handles before the parameters, of the commands whose second parameter is a public area: Create, CreatePrimary,
# CreateLoaded, LoadExternal, Load, Import (Part 3).
_HANDLES: Final = {0x0153: 1, 0x0131: 1, 0x0191: 1, 0x0167: 0, 0x0157: 1, 0x0156: 1}
_CAP_ALGS: Final = 0x00000000
_CAP_ECC_CURVES: Final = 0x00000008

_RC_VALUE: Final = 0x084
_RC_TYPE: Final = 0x08A
_RC_CURVE: Final = 0x0A6
_RC_PARAMETER: Final = 0x040
_WITH_SESSIONS: Final = 0x8002

_A = TpmAlgorithm
_NEED_RSA: Final = frozenset({_A.RSA, _A.RSASSA, _A.RSAES, _A.RSAPSS, _A.OAEP})
_NEED_ECC: Final = frozenset({_A.ECC, _A.ECDSA, _A.ECDH, _A.ECDAA, _A.SM2, _A.ECSCHNORR, _A.ECMQV, _A.KDF1_SP800_56A})


@dataclass(frozen=True, slots=True)
class Algorithms:
    """What asymmetric keys a TPM knows: RSA or not, and which curves (TPM_ECC_CURVE); None for all it has."""

    rsa: bool = True
    curves: frozenset[int] | None = None

    @property
    def missing(self) -> frozenset[int]:
        """The algorithm identifiers it does not list."""
        return (frozenset() if self.rsa else _NEED_RSA) | (_NEED_ECC if self.curves == frozenset() else frozenset())

    def fault_of(self, kind: int, curve: int | None) -> int:
        """The response code (without its parameter number) for a key of this type, 0 if it can be made."""
        if kind in self.missing:
            return _RC_TYPE
        return _RC_CURVE if curve is not None and self.curves is not None and curve not in self.curves else 0


RSA_ONLY: Final = Algorithms(curves=frozenset())
P384_ONLY: Final = Algorithms(curves=frozenset({P384}))
"""RSA, and of the curves only P-384."""


class AlgorithmFilterTcti(ExchangeTcti):
    """Makes the TPM behind it one that knows only some algorithms."""

    def __init__(self, inner: Any, algorithms: Algorithms) -> None:
        super().__init__(inner)
        self._algorithms = algorithms

    def exchange(self, command: bytes, send: Send) -> bytes:
        """Refuse what this TPM cannot do, and leave it out where the TPM lists what it can."""
        code = command_code(command)
        if code == _TEST_PARMS:
            return self._refusal(*_parameters(command[10:]), 1) or send(command)
        if code in _HANDLES:
            return self._refusal(*_public(_second_parameter(command, _HANDLES[code])), 2) or send(command)
        return self._shorten(command, send) if code == _GET_CAPABILITY else send(command)

    def _refusal(self, kind: int, curve: int | None, parameter: int) -> bytes:
        fault = self._algorithms.fault_of(kind, curve)
        return response(fault | _RC_PARAMETER | parameter << 8) if fault else b""

    def _shorten(self, command: bytes, send: Send) -> bytes:
        tag, capability = struct.unpack_from(">H8xI", command)
        # With an audit session the list is in its HMAC: it passes as it is.
        if tag == _WITH_SESSIONS or capability not in {_CAP_ALGS, _CAP_ECC_CURVES}:
            return send(command)
        if capability == _CAP_ECC_CURVES and self._algorithms.curves == frozenset():
            return response(_RC_VALUE | _RC_PARAMETER | 0x100)
        return self._without(send(command), capability)

    def _without(self, answer: bytes, capability: int) -> bytes:
        """The answer to TPM2_GetCapability less the entries that are missing: header, moreData, list."""
        if len(answer) < 19:
            return answer
        width = 6 if capability == _CAP_ALGS else 2
        entries = [answer[at : at + width] for at in range(19, len(answer), width)]
        kept = [entry for entry in entries if self._has(int.from_bytes(entry[:2], "big"), capability)]
        body = answer[10:15] + struct.pack(">I", len(kept)) + b"".join(kept)
        return answer[:2] + struct.pack(">I", 10 + len(body)) + answer[6:10] + body

    def _has(self, number: int, capability: int) -> bool:
        if capability == _CAP_ALGS:
            return number not in self._algorithms.missing
        return self._algorithms.curves is None or number in self._algorithms.curves


def _second_parameter(command: bytes, handles: int) -> bytes:
    """From the second parameter of a command to its end; both of the first two are sized."""
    at = 10 + 4 * handles
    if int.from_bytes(command[:2], "big") == _WITH_SESSIONS:
        at += 4 + int.from_bytes(command[at : at + 4], "big")
    at += 2 + int.from_bytes(command[at : at + 2], "big")
    return command[at + 2 :]


def _public(area: bytes) -> tuple[int, int | None]:
    """Type and curve of a TPMT_PUBLIC: type, nameAlg, attributes, authPolicy, parameters."""
    policy = int.from_bytes(area[8:10], "big")
    return _parameters(area[:2] + area[10 + policy :])


def _parameters(parms: bytes) -> tuple[int, int | None]:
    """Type and curve of a TPMT_PUBLIC_PARMS, None for the curve of what has none."""
    kind = int.from_bytes(parms[:2], "big")
    if kind != _A.ECC:
        return kind, None
    symmetric = 2 if int.from_bytes(parms[2:4], "big") == _A.NULL else 6
    at = 2 + symmetric
    scheme = int.from_bytes(parms[at : at + 2], "big")
    at += 2 if scheme == _A.NULL else 6 if scheme == _A.ECDAA else 4
    return kind, int.from_bytes(parms[at : at + 2], "big")

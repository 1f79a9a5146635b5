"""What a TPM holds right now, read over a connection of its own that is closed at once.

`LOADED` is what programs leave behind by mistake: transient objects and sessions. A chip has a handful of slots for
them, so that a leak locks everybody out. Every function takes a TCTI string, for example `device:/dev/tpmrm0`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Self

from tpm2_pytss import ESAPI, TCTILdr
from tpm2_pytss.constants import TPM2_CAP, TPM2_PT, TPM2_PT_NV

LOADED: Final = (0x80000000, 0x02000000, 0x03000000)
"""Ranges of handles: transient objects, sessions in the TPM, sessions saved outside it (Part 2 section 7.2)."""

PERSISTENT: Final = 0x81000000
NV_INDEX: Final = 0x01000000

_MANY: Final = 254


@dataclass(frozen=True, slots=True)
class TpmContents:
    """The handles of a TPM: persistent objects, NV indices, and what is loaded."""

    persistent: frozenset[int]
    nv_indices: frozenset[int]
    loaded: frozenset[int]

    def difference(self, later: TpmContents) -> tuple[str, ...]:
        """What is not as it was, one sentence each; empty when nothing has changed."""
        kinds = {
            "persistent object": (self.persistent, later.persistent),
            "NV index": (self.nv_indices, later.nv_indices),
            "loaded object or session": (self.loaded, later.loaded),
        }
        new = [f"{kind} 0x{handle:08X} was left" for kind, (was, now) in kinds.items() for handle in sorted(now - was)]
        gone = [f"{kind} 0x{handle:08X} is gone" for kind, (was, now) in kinds.items() for handle in sorted(was - now)]
        return (*new, *gone)


@dataclass(frozen=True, slots=True)
class TpmDevice:
    """A real TPM, with as much of the emulated one's interface as it can have."""

    tcti: str

    @classmethod
    def at(cls, place: str) -> Self:
        """The TPM of a device file such as `/dev/tpmrm0`, or of any TCTI string."""
        return cls(f"device:{place}" if place.startswith("/") else place)

    def contents(self) -> TpmContents:
        """All its handles."""
        return read_contents(self.tcti)

    def loaded_handles(self) -> frozenset[int]:
        """Transient objects and sessions that are loaded or saved now, as far as a resource manager shows them."""
        return self.contents().loaded

    def lockout_counter(self) -> int:
        """Failures counted by the dictionary attack protection (TPM_PT_LOCKOUT_COUNTER)."""
        return read_lockout_counter(self.tcti)


@contextmanager
def connected(tcti: str) -> Iterator[Any]:
    """An `ESAPI` over the TCTI string, closed at the end, also its TCTI."""
    with TCTILdr.parse(tcti) as opened, ESAPI(opened) as esys:
        yield esys


def read_contents(tcti: str) -> TpmContents:
    """All handles. Raises `TSS2_Exception` as every function here does."""
    with connected(tcti) as esys:
        return TpmContents(
            frozenset(_handles(esys, PERSISTENT)),
            frozenset(_handles(esys, NV_INDEX)),
            frozenset(handle for first in LOADED for handle in _handles(esys, first)),
        )


def read_property(tcti: str, number: int) -> int:
    """One property of `TPM_CAP_TPM_PROPERTIES`, for example `TPM2_PT.LOCKOUT_COUNTER`; 0 if the TPM lacks it."""
    with connected(tcti) as esys:
        return _property(esys, number)


def read_lockout_counter(tcti: str) -> int:
    """Failures that the dictionary attack protection has counted and not yet forgiven (TPM_PT_LOCKOUT_COUNTER)."""
    return read_property(tcti, TPM2_PT.LOCKOUT_COUNTER)


def read_nv(esys: Any, index: int) -> bytes:
    """Everything in an NV index that may be read with its own, empty authorization."""
    handle = esys.tr_from_tpmpublic(index)
    public, _ = esys.nv_read_public(handle)
    size, step = int(public.nvPublic.dataSize), _property(esys, TPM2_PT_NV.BUFFER_MAX)
    parts = [bytes(esys.nv_read(handle, min(step, size - start), start)) for start in range(0, size, step)]
    return b"".join(parts)


def write_nv(esys: Any, handle: Any, data: bytes, authority: Any) -> None:
    """Fill an NV index in as many commands as the TPM needs."""
    step = _property(esys, TPM2_PT_NV.BUFFER_MAX)
    for start in range(0, len(data), step):
        esys.nv_write(handle, data[start : start + step], start, authority)


def _property(esys: Any, number: int) -> int:
    # The list belongs to `answer`, which has to outlive it: its memory goes with the variable.
    _, answer = esys.get_capability(TPM2_CAP.TPM_PROPERTIES, number, 1)
    return next((int(found.value) for found in answer.data.tpmProperties if found.property == number), 0)


def _handles(esys: Any, first: int) -> Iterator[int]:
    more, last = True, first - 1
    while more:
        more, answer = esys.get_capability(TPM2_CAP.HANDLES, last + 1, _MANY)
        handles = [int(handle) for handle in answer.data.handles]
        yield from handles
        last = max(handles, default=last)

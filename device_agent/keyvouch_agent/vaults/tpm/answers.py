"""What a TPM answers, held against what was asked for, before anything is made of it, kept or sent.

Where no session protects a response, nothing does: libtss2 3.2 reads on in its own buffer where one was cut off, and
whoever sits on the bus can write what he likes. So what an honest answer always is gets checked: a list has nothing
twice and nothing from elsewhere, a key is what its template says, a signature verifies. Cheap: no command more.

What is not here: refusals, which are answers too (`response_codes`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from tpm2_pytss import TPM2_CAP, TSS2_Exception

from keyvouch.attestation.tpm_public import TpmPublic
from keyvouch.errors import DeviceError, KeyvouchError, Reason
from keyvouch_agent.vaults.tpm.connection import Tpm

__all__ = ["as_asked", "listed", "making_sense", "senseless"]

_MOST: Final = 256
_ITEMS: Final[Mapping[int, tuple[Callable[[Any], Sequence[Any]], Callable[[Any], tuple[int, int]]]]] = {
    int(TPM2_CAP.HANDLES): (lambda data: data.handles, lambda item: (int(item), 0)),
    int(TPM2_CAP.ALGS): (lambda data: data.algorithms, lambda item: (int(item.alg), 0)),
    int(TPM2_CAP.ECC_CURVES): (lambda data: data.eccCurves, lambda item: (int(item), 0)),
    int(TPM2_CAP.TPM_PROPERTIES): (lambda data: data.tpmProperties, lambda item: (int(item.property), int(item.value))),
}
"""Of each list where its items are, and the number and the value of an item, 0 for those that have none."""
_GROUPS: Final = {int(TPM2_CAP.HANDLES): 24, int(TPM2_CAP.TPM_PROPERTIES): 8}
"""Lists of items that all have the upper part of the number asked for: the bits below it."""


def senseless(what: str) -> DeviceError:
    """The error for an answer that no TPM gives."""
    return DeviceError(
        Reason.TPM_FAILED,
        f"The TPM answered with {what}. Nothing was made of it.",
        fix="Try again. If it goes on, run `keyvouch-agent doctor`: the TPM or the way to it is broken.",
    )


@contextmanager
def making_sense(of: str) -> Iterator[None]:
    """Parsing and verifying an answer in the block. Raises `DeviceError(TPM_FAILED)` where that fails."""
    try:
        yield
    except DeviceError:
        raise
    except (KeyvouchError, TSS2_Exception, ValueError) as error:
        raise senseless(f"{of} that makes no sense") from error


def listed(tpm: Tpm, kind: TPM2_CAP, first: int) -> dict[int, int]:
    """One list of TPM2_GetCapability from `first` on: values by the numbers of their items. One command.

    Nothing of the TSS's is handed out: its items lie in the memory of the answer, which goes with this function.
    """
    found = tpm.do(tpm.esapi.get_capability, kind, first, _MOST)[1]
    if int(found.capability) != int(kind):
        raise senseless("another list than the one asked for")
    of, read = _ITEMS[int(kind)]
    items = [read(item) for item in of(found.data)]
    numbered = dict(items)
    shift = _GROUPS.get(int(kind), 16)
    if len(numbered) != len(items) or any(n >> shift != first >> shift or n < first or not n for n in numbered):
        raise senseless("a list that is none")
    return numbered


def as_asked(made: Any, template: Any) -> TpmPublic:
    """The public area (TPM2B_PUBLIC) of a key that was just made: what its template says, and a key."""
    with making_sense("a key"):
        area = TpmPublic(bytes(made.publicArea.marshal()))
        template.publicArea.unique = made.publicArea.unique
        if bytes(template.publicArea.marshal()) != bytes(area):
            raise senseless("another key than was asked for")
    return area

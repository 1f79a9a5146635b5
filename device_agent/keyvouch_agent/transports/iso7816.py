"""APDUs: commands parsed, chains of them joined, long responses handed out in pieces. Pure.

Section numbers are those of ISO/IEC 7816-4:2005. What is not here: what a command means (`fido_applet`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum, unique
from typing import Final

__all__ = ["CHAIN_BIT", "GET_RESPONSE", "LONGEST_CHAIN", "ApduError", "CommandApdu", "Pieces", "StatusWord", "parse"]

CHAIN_BIT: Final = 0x10
"""Set in the class byte of every command of a chain but the last (section 5.1.1.1)."""
GET_RESPONSE: Final = 0xC0
"""The instruction that fetches what is left of a response (section 7.6.1)."""
LONGEST_CHAIN: Final = 7609
"""Bytes of a chain's data: as much as CTAPHID can carry, and far more than any command takes."""

_HEADER: Final = 4
_SHORT_MAXIMUM: Final = 256
_EXTENDED_MAXIMUM: Final = 65536


@unique
class StatusWord(IntEnum):
    """SW1-SW2 (section 5.1.3), and the 9100 of CTAP 2.1 section 11.3.7.2."""

    SUCCESS = 0x9000
    UPDATE = 0x9100
    MORE_DATA = 0x6100
    WRONG_LENGTH = 0x6700
    CONDITIONS_NOT_SATISFIED = 0x6985
    NOT_FOUND = 0x6A82
    INCORRECT_PARAMETERS = 0x6A86
    INSTRUCTION_NOT_SUPPORTED = 0x6D00
    CLASS_NOT_SUPPORTED = 0x6E00


class ApduError(Exception):
    """A command that is answered with this status word and nothing else. It never leaves the package."""

    def __init__(self, status: StatusWord) -> None:
        super().__init__(status.name)
        self.status = status


@dataclass(frozen=True, slots=True)
class CommandApdu:
    """A command. `expected` is the most bytes its response may have in one piece (Ne)."""

    cla: int
    ins: int
    p1: int
    p2: int
    data: bytes
    expected: int
    extended: bool

    @property
    def header(self) -> tuple[int, int, int, int]:
        """What all commands of a chain have in common."""
        return (self.cla & ~CHAIN_BIT, self.ins, self.p1, self.p2)

    @property
    def is_chained(self) -> bool:
        """Whether more commands of the same chain follow."""
        return bool(self.cla & CHAIN_BIT)


def parse(apdu: bytes) -> CommandApdu:
    """Parse any of the cases 1 to 4, short or extended (section 5.1). Raises `ApduError(WRONG_LENGTH)`.

    A command without an Le field may still be answered with data: some clients leave it out. Its response is as long
    as the form of its lengths allows.
    """
    if len(apdu) < _HEADER:
        raise ApduError(StatusWord.WRONG_LENGTH)
    body = apdu[_HEADER:]
    extended = len(body) >= 3 and body[0] == 0
    data, expected = _extended_body(body[1:]) if extended else _short_body(body)
    cla, ins, p1, p2 = apdu[:_HEADER]
    return CommandApdu(cla, ins, p1, p2, data, expected, extended)


def _short_body(body: bytes) -> tuple[bytes, int]:
    if not body:
        return b"", _SHORT_MAXIMUM
    if len(body) == 1:
        return b"", body[0] or _SHORT_MAXIMUM
    length, rest = body[0], body[1:]
    if length == 0 or len(rest) not in (length, length + 1):
        raise ApduError(StatusWord.WRONG_LENGTH)
    expected = rest[length] if len(rest) > length else 0
    return rest[:length], expected or _SHORT_MAXIMUM


def _extended_body(body: bytes) -> tuple[bytes, int]:
    """`body` without the zero byte that marks the form: two bytes of a length, and what follows."""
    length, rest = int.from_bytes(body[:2], "big"), body[2:]
    if not rest:
        return b"", length or _EXTENDED_MAXIMUM
    if length == 0 or len(rest) not in (length, length + 2):
        raise ApduError(StatusWord.WRONG_LENGTH)
    return rest[:length], int.from_bytes(rest[length:], "big") or _EXTENDED_MAXIMUM


class Pieces:
    """The pieces that are under way: of a chained command coming in, of a long response going out.

    A command that does not go on with a chain ends it, and one that is not GET RESPONSE ends what was left of a
    response: a client that has given up can always begin anew.
    """

    def __init__(self) -> None:
        self._chain: CommandApdu | None = None
        self._left = b""
        self._status: int = StatusWord.SUCCESS

    def clear(self) -> None:
        """Forget everything that is under way."""
        self._chain = None
        self._left = b""

    def join(self, command: CommandApdu) -> CommandApdu | None:
        """The whole command when `command` is its last piece, else None: the piece is to be acknowledged.

        Raises `ApduError(WRONG_LENGTH)` for a chain that is too long; it is forgotten then.
        """
        self._left = b""
        chain, self._chain = self._chain, None
        before = chain.data if chain is not None and chain.header == command.header else b""
        data = before + command.data
        if len(data) > LONGEST_CHAIN:
            raise ApduError(StatusWord.WRONG_LENGTH)
        whole = replace(command, cla=command.cla & ~CHAIN_BIT, data=data)
        if command.is_chained:
            self._chain = whole
            return None
        return whole

    def answer(self, command: CommandApdu, data: bytes, status: int) -> bytes:
        """The first piece of a response. Its own status comes with the last one, 61xx with those before it."""
        self._left, self._status = data, status
        return self._next(command.expected)

    def go_on(self, command: CommandApdu) -> bytes:
        """Answer a GET RESPONSE. Raises `ApduError(CONDITIONS_NOT_SATISFIED)` when nothing is left."""
        self._chain = None
        if not self._left:
            raise ApduError(StatusWord.CONDITIONS_NOT_SATISFIED)
        if command.p1 or command.p2:
            raise ApduError(StatusWord.INCORRECT_PARAMETERS)
        return self._next(command.expected)

    def _next(self, longest: int) -> bytes:
        piece, self._left = self._left[:longest], self._left[longest:]
        if not self._left:
            return piece + self._status.to_bytes(2, "big")
        left = len(self._left) if len(self._left) < _SHORT_MAXIMUM else 0
        return piece + (StatusWord.MORE_DATA + left).to_bytes(2, "big")

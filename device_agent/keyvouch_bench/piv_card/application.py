"""The PIV card application: APDUs in, APDUs out (NIST SP 800-73-4 part 2).

Any bytes at all get a status word, and a command that is refused changes nothing but what the specification has it
change: tries, and the security status. What is *not* here: secure messaging, the virtual contact interface, the global
PIN, fingerprints, and what carries the APDUs (`card`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from keyvouch_agent.transports.iso7816 import CHAIN_BIT, ApduError, CommandApdu, Pieces, parse
from keyvouch_bench.piv_card import access, administration, key_commands
from keyvouch_bench.piv_card.general_authenticate import general_authenticate
from keyvouch_bench.piv_card.identifiers import AID, Instruction, RefusedError, Status
from keyvouch_bench.piv_card.objects import application_template
from keyvouch_bench.piv_card.session import Chip, Session
from keyvouch_bench.piv_card.state import CardState

__all__ = ["OTHER_APPLICATION", "PivApplication"]

OTHER_APPLICATION: Final = bytes.fromhex("A000000151000000")
"""What else can be selected: it knows no command but SELECT."""

LABEL: Final = "Keyvouch virtual PIV card"

_BY_NAME: Final = 0x04
_SHORTEST_NAME: Final = 5

Act = Callable[[Chip, CommandApdu], bytes]


class PivApplication:
    """The application of one card. It is the default one, so it is selected when the power comes.

    `entropy` gives that many random bytes; `touched` says whether somebody touches the card now.
    """

    def __init__(self, state: CardState, *, entropy: Callable[[int], bytes], touched: Callable[[], bool]) -> None:
        self._chip = Chip(state, entropy, touched)
        self._pieces = Pieces()

    def power_cycle(self) -> None:
        """The power is gone, or there was a reset: whatever was under way is lost, and nobody is known any more."""
        self._pieces.clear()
        self._chip.session = Session()

    def answer(self, apdu: bytes) -> bytes:
        """Answer one command APDU: response data and status word."""
        try:
            command = parse(apdu)
            if command.cla & ~CHAIN_BIT:
                raise RefusedError(Status.CLASS_NOT_SUPPORTED)
            if command.ins == Instruction.GET_RESPONSE and not command.is_chained:
                return self._pieces.go_on(command)
            whole = self._pieces.join(command)
            if whole is None:
                return _word(Status.SUCCESS)
            data = self._carry_out(whole)
        except (ApduError, RefusedError) as error:
            return _word(error.status)
        return self._pieces.answer(whole, data, Status.SUCCESS)

    def _carry_out(self, command: CommandApdu) -> bytes:
        self._chip.session.begin()
        if command.ins == Instruction.SELECT:
            return self._select(command)
        act = _ACTS.get(command.ins)
        if act is None or not self._chip.session.selected:
            raise RefusedError(Status.INSTRUCTION_NOT_SUPPORTED)
        return act(self._chip, command)

    def _select(self, command: CommandApdu) -> bytes:
        """Section 3.1.1: by the name, which may be cut short. Selecting what is selected changes no status."""
        if command.p1 != _BY_NAME or command.p2:
            raise RefusedError(Status.INCORRECT_PARAMETERS)
        name = command.data
        if len(name) >= _SHORTEST_NAME and AID.startswith(name):
            self._chip.session.selected = True
            return application_template(LABEL)
        if name != OTHER_APPLICATION:
            raise RefusedError(Status.NOT_FOUND)
        self._chip.session = Session(selected=False)
        return b""


_ACTS: Final[Mapping[int, Act]] = {
    Instruction.VERIFY: access.verify,
    Instruction.CHANGE_REFERENCE_DATA: access.change_reference_data,
    Instruction.RESET_RETRY_COUNTER: access.reset_retry_counter,
    Instruction.GENERATE_ASYMMETRIC_KEY_PAIR: key_commands.generate_key_pair,
    Instruction.GENERAL_AUTHENTICATE: general_authenticate,
    Instruction.GET_DATA: administration.get_data,
    Instruction.PUT_DATA: administration.put_data,
    Instruction.GET_METADATA: key_commands.get_metadata,
    Instruction.GET_SERIAL: administration.get_serial,
    Instruction.ATTEST: key_commands.attest,
    Instruction.SET_RETRIES: access.set_retries,
    Instruction.RESET: administration.reset,
    Instruction.GET_VERSION: administration.get_version,
    Instruction.IMPORT_KEY: key_commands.import_private_key,
    Instruction.SET_MANAGEMENT_KEY: administration.set_management_key,
}


def _word(status: int) -> bytes:
    return status.to_bytes(2, "big")

"""What `doctor` finds about security keys: those that are connected, what keeps one from use, readers, enrolled ones.

Nothing is asked of a key but what it says without a touch. What is in nobody's way is a note: only an account that is
enrolled with a security key needs one.
"""

from __future__ import annotations

from collections.abc import Sequence

from keyvouch.errors import DeviceError, KeyvouchError, Reason
from keyvouch_agent.commands.findings import Finding, good, note, problem, trouble
from keyvouch_agent.ledger import Enrolment
from keyvouch_agent.pin_standing import check_pin_usable, describe_pin, tries_left
from keyvouch_agent.ports import ProviderKind
from keyvouch_agent.prompts.inert import inert
from keyvouch_agent.provider_shelf import ProviderKey, ProviderShelf
from keyvouch_client.security_keys.discovery import ConnectedKey, SecurityKeys, Transport
from keyvouch_client.security_keys.pcsc import Readers
from keyvouch_client.security_keys.standing import KeyStanding, read_standing, require_usable

__all__ = ["security_key_findings"]

_RESET = "Connect it when a request comes. After a reset: an access pass, then `keyvouch-agent enroll --replace`."
_REACHED = {Transport.USB: "USB", Transport.NFC: "NFC", Transport.CARD: "smartcard reader"}


def security_key_findings(
    keys: SecurityKeys, readers: Readers, shelf: ProviderShelf, enrolments: Sequence[Enrolment]
) -> list[Finding]:
    """Look at all of them."""
    with_key = [e for e in enrolments if e.provider == ProviderKind.FIDO2]
    found = keys.scan()
    findings = [_key(key, needed=bool(with_key)) for key in found]
    if not found:
        findings.append(note("security keys", "none is connected"))
    others = any(key.trouble is None for key in found)
    return [*findings, _readers(readers), *(_account(e, shelf, others=others) for e in with_key)]


def _key(key: ConnectedKey, *, needed: bool) -> Finding:
    check = key.title
    try:
        standing = read_standing(key)
        require_usable(standing)
    except DeviceError as error:
        return trouble(check, error, optional=not needed)
    where = _REACHED[key.transport] if key.place in key.name else f"{_REACHED[key.transport]}, {key.place}"
    words = f"{where}; {', '.join(standing.versions)}; {_verification(standing)}"
    if standing.room is not None:
        words += f"; room for about {standing.room} discoverable credentials"
    if fix := _way_back(standing):
        return note(check, words, fix)
    return good(check, words)


def _verification(standing: KeyStanding) -> str:
    said = []
    if standing.built_in:
        said.append("verifies you itself" if standing.asks_pin is False else "takes no more fingers or faces for now")
    elif standing.built_in is False:
        said.append("no finger is enrolled on it")
    if standing.takes_pin and not standing.pin_is_set:
        said.append("no PIN set")
    elif standing.pin_is_set:
        left = standing.pin_retries_left
        said.append("PIN set" if left is None else f"PIN set, {tries_left(left)}" if left else "PIN blocked")
    if standing.must_change_pin:
        said.append("the PIN must be changed")
    if standing.needs_power_cycle:
        said.append("three wrong PINs in a row")
    return ", ".join(said)


def _way_back(standing: KeyStanding) -> str:
    """What to do about a key that cannot be used as it is."""
    if standing.pin_is_set and standing.pin_retries_left == 0:
        return "Reset it with its maker's tool, which removes every key on it, then enrol again."
    if standing.needs_power_cycle:
        return "Take it out and put it in again."
    if standing.must_change_pin:
        return "Change its PIN with `keyvouch-agent pin --provider fido2`."
    if standing.takes_pin and not standing.pin_is_set and not standing.built_in:
        return "Nothing now: `keyvouch-agent enroll --provider fido2` sets its PIN."
    return ""


def _readers(readers: Readers) -> Finding:
    check = "smartcard readers"
    try:
        slots = readers.slots()
    except KeyvouchError as error:
        return trouble(check, error, optional=True)
    if not slots:
        return note(check, "none is connected; a security key on USB needs none")
    return good(check, ", ".join(f"{slot.reader} ({'a card' if slot.atr else 'empty'})" for slot in slots))


def _account(enrolment: Enrolment, shelf: ProviderShelf, *, others: bool) -> Finding:
    """Is the key of an account there? It need not be, before a request comes. `others`: some key is."""
    check = f"security key of {enrolment.username} of {inert(enrolment.tenant_name)}"
    try:
        capabilities = shelf.get(ProviderKey(enrolment.provider, enrolment.account)).capabilities()
    except DeviceError as error:
        if error.reason is Reason.VAULT_BUSY:
            return good(check, "in use by the running agent")
        return trouble(check, error)
    name = enrolment.key_name or capabilities.name
    if not capabilities.connected and others:
        return note(check, f"no key that is connected is {name}, or it was reset", _RESET)
    if not capabilities.connected:
        return note(check, f"{name} is not connected", "Connect it when a request comes.")
    words = f"{capabilities.name}: {describe_pin(capabilities)}"
    try:
        check_pin_usable(capabilities)
    except DeviceError as error:
        return problem(check, words, error.fix)
    return good(check, words)

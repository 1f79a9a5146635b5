"""What `doctor` finds about smartcards: the library, the PKCS#11 modules, cards and tokens, accounts on them.

No PIN is asked for. What is in nobody's way is a note: only an account whose key is on a card needs one. Whether pcscd
runs and which readers it has is looked at with the security keys.
"""

from __future__ import annotations

from collections.abc import Sequence

from keyvouch.errors import DeviceError, KeyvouchError, Reason
from keyvouch_agent.cards.seen import SeenModule, SeenToken, modules, tokens
from keyvouch_agent.cards.wish import CardWish
from keyvouch_agent.commands.findings import Finding, good, note, problem, trouble
from keyvouch_agent.ledger import Enrolment
from keyvouch_agent.pin_standing import check_last_try, check_pin_usable, describe_pin, tries_left
from keyvouch_agent.ports import ProviderKind
from keyvouch_agent.prompts.inert import inert
from keyvouch_agent.provider_shelf import ProviderKey, ProviderShelf
from keyvouch_agent.vaults.pkcs11.failures import require_library

__all__ = ["card_findings"]

_UNBLOCK = "Unblock it with the PUK, which whoever issued the card has: pkcs15-tool --unblock-pin."


def card_findings(wish: CardWish, shelf: ProviderShelf, enrolments: Sequence[Enrolment]) -> list[Finding]:
    """Look at all of it."""
    on_card = [e for e in enrolments if e.provider == ProviderKind.SMARTCARD]
    try:
        require_library()
    except DeviceError as error:
        return [trouble("provider smartcard", error, optional=not on_card)]
    seen = list(modules(wish))
    findings = [_module(module, wish, needed=bool(on_card)) for module in seen if module.path]
    if missing := [f"{module.name} ({module.package})" for module in seen if not module.path]:
        findings.append(
            note("PKCS#11 modules", f"not installed: {', '.join(missing)}", "Install what your card needs.")
        )
    return [*findings, *_tokens(wish, needed=bool(on_card)), *(_account(e, shelf) for e in on_card)]


def _module(module: SeenModule, wish: CardWish, *, needed: bool) -> Finding:
    check = f"PKCS#11 module {module.name}"
    if module.trouble is not None:
        used = str(module.path) == wish.module
        return trouble(check, module.trouble, optional=not (used and needed))
    return good(check, f"{module.path} may be loaded")


def _tokens(wish: CardWish, *, needed: bool) -> list[Finding]:
    try:
        found = tokens(wish)
    except DeviceError as error:
        return [trouble("smartcards", error, optional=not needed)]
    if not found:
        return [note("smartcards", "no card or token is there", "Put yours in when you need it.")]
    return [_token(token) for token in found]


def _token(token: SeenToken) -> Finding:
    check, words = f"smartcard {token.name}", f"in {token.reader}; "
    if not token.pin_is_set:
        return note(check, f"{words}no PIN set", "Set it with the card's own tool, such as pkcs11-tool --init-pin.")
    if token.tries_left == 0:
        return note(check, f"{words}PIN blocked", _UNBLOCK)
    left = "PIN set" if token.tries_left is None else tries_left(token.tries_left, "PIN ")
    words += f"{left}, typed on the reader" if token.on_pad else left
    return note(check, words, _UNBLOCK) if token.tries_left == 1 else good(check, words)


def _account(enrolment: Enrolment, shelf: ProviderShelf) -> Finding:
    """Is the card of an account there, and can its PIN be given? It need not be there before a request comes."""
    check = f"smartcard of {enrolment.username} of {inert(enrolment.tenant_name)}"
    try:
        capabilities = shelf.get(ProviderKey(enrolment.provider, enrolment.account)).capabilities()
    except KeyvouchError as error:
        if error.reason is Reason.VAULT_BUSY:
            return good(check, "in use by the running agent")
        return trouble(check, error)
    name = enrolment.key_name or capabilities.name
    if not capabilities.connected:
        return note(check, f"{name} is not in a reader", "Put it in when a request comes.")
    words = f"{name}: {describe_pin(capabilities)}"
    try:
        check_pin_usable(capabilities)
        check_last_try(capabilities.kind, capabilities.pin_retries_left, allowed=False)
    except DeviceError as error:
        return problem(check, words, error.fix)
    return good(check, words)

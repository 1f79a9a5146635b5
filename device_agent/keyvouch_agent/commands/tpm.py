"""tpm unlock and tpm forget: what is done about the TPM's lockout, and about what Keyvouch left in the TPM."""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from keyvouch.errors import ConflictError, DeviceError, KeyvouchError, NotFoundError, Reason, UsageError
from keyvouch_agent import bootstrap
from keyvouch_agent.commands.asking import ask_secret, open_terminal, read_secret
from keyvouch_agent.commands.output import Output
from keyvouch_agent.commands.tpm_words import lockout_words
from keyvouch_agent.home import ENROL_LOCK, Home
from keyvouch_agent.key_holders import KeyHolderSet, ShelfHolders
from keyvouch_agent.ledger import Enrolment, Ledger
from keyvouch_agent.local_client import borrow_providers
from keyvouch_agent.ports import ProviderKind
from keyvouch_agent.prompts.inert import inert
from keyvouch_agent.provider_shelf import ProviderShelf
from keyvouch_agent.tpm_report import patiently
from keyvouch_agent.vaults.tpm.connection import TpmAccess
from keyvouch_agent.views import Document, error_document

if TYPE_CHECKING:  # it loads libtss2
    from keyvouch_agent.vaults.tpm.profile import LockoutState

__all__ = ["forget", "unlock"]

_NOT_THE_PIN = "This unblocks no account's PIN: that takes an access pass and `keyvouch-agent enroll --replace`."


def unlock(arguments: argparse.Namespace, home: Home, output: Output) -> None:
    """Reset the TPM's own lockout, if it is in one."""
    access = bootstrap.key_holders(home).tpm_access()
    access.require_library()
    lockout = patiently(access, lambda: _lockout(access))
    if not lockout.in_lockout:
        output.result({"reset": False}, f"There is nothing to reset: {lockout_words(lockout)}.", _NOT_THE_PIN)
        return
    auth = asyncio.run(_lockout_auth(arguments, lockout))
    patiently(access, lambda: _reset(access, auth))
    output.result({"reset": True}, "The TPM's lockout is reset: it takes passwords again.", _NOT_THE_PIN)


def _lockout(access: TpmAccess) -> LockoutState:
    from keyvouch_agent.vaults.tpm.profile import read_lockout  # noqa: PLC0415 - needs libtss2

    with access.open() as tpm:
        return read_lockout(tpm)


def _reset(access: TpmAccess, auth: bytes) -> None:
    from keyvouch_agent.vaults.tpm.lockout import reset_lockout  # noqa: PLC0415 - needs libtss2

    with access.open() as tpm:
        reset_lockout(tpm, auth)


async def _lockout_auth(arguments: argparse.Namespace, lockout: LockoutState) -> bytes:
    if arguments.lockout_auth_fd is not None:
        return read_secret(arguments.lockout_auth_fd).encode()
    if not lockout.lockout_auth_set:
        return b""
    with open_terminal() as lines:
        return (await ask_secret(lines, "Password of the TPM's lockout: ")).encode()


@dataclass(frozen=True, slots=True)
class _Target:
    """An account in the TPM, and what still names it."""

    account: str
    enrolment: Enrolment | None = None
    staged: str = ""

    @property
    def words(self) -> str:
        """What people know it by."""
        e = self.enrolment
        return f"{e.username} of {inert(e.tenant_name)} (device {e.device_id})" if e else f"account {self.account}"

    @property
    def document(self) -> dict[str, object]:
        """The same for programs."""
        e = self.enrolment
        return {"account": self.account, "device_id": e.device_id if e else None, "username": e.username if e else None}


def forget(arguments: argparse.Namespace, home: Home, output: Output) -> int:
    """Take accounts out of the TPM; the exit code is 1 where that did not work with one of them."""
    if bool(arguments.account) == arguments.abandoned:
        raise UsageError("It is not clear what to forget.", fix="Name an account, or say --abandoned.")
    holders = bootstrap.key_holders(home)
    with borrow_providers(home), home.lock(ENROL_LOCK):
        if arguments.abandoned:
            return _forget_abandoned(holders, output)
        target = _target(arguments.account, holders, home)
        if not arguments.yes:
            _require_unused(target)
        whole = patiently(holders.tpm_access(), lambda: _forget(target, holders, damaged_too=arguments.yes))
        _forget_records(target, home)
    document = {**target.document, "taken_out_of_tpm": whole}
    output.result({"forgotten": [document], "left": []}, *_forgotten(target, whole=whole))
    return 0


def _forget_abandoned(holders: KeyHolderSet, output: Output) -> int:
    forgotten: list[Document] = []
    left: list[Document] = []
    sentences = []
    for target in map(_Target, holders.abandoned_tpm_accounts()):
        try:
            patiently(holders.tpm_access(), lambda t=target: _forget(t, holders, damaged_too=False))  # type: ignore[misc]
        except KeyvouchError as error:
            left.append({**target.document, "error": error_document(error)})
            sentences.append(f"Not removed: {target.words}. {error.message} {_way_on(target, error)}")
        else:
            forgotten.append({**target.document, "taken_out_of_tpm": True})
            sentences.append(f"Removed: {target.words}.")
    output.result({"forgotten": forgotten, "left": left}, *(sentences or ["Nothing was left behind in the TPM."]))
    return 1 if left else 0


def _way_on(target: _Target, error: KeyvouchError) -> str:
    if error.reason is Reason.VAULT_CORRUPT:
        return f"`keyvouch-agent tpm forget {target.account} --yes` erases its files."
    return error.fix


def _target(wanted: str, holders: KeyHolderSet, home: Home) -> _Target:
    ledger = Ledger(home)
    staged = {s.account: s.registration_id for s in ledger.staged()}
    enrolled = {e.account: e for e in ledger.enrolments() if e.provider == ProviderKind.TPM}
    known = [_Target(name, enrolled.get(name), staged.get(name, "")) for name in {*holders.tpm_accounts(), *enrolled}]
    found = [t for t in known if wanted == t.account or (t.enrolment and wanted in _names(t.enrolment))]
    if not found:
        raise NotFoundError(
            Reason.NOT_ENROLLED,
            f"No account of this home is called {wanted} and has its key in the TPM.",
            fix="`keyvouch-agent tpm status` lists them.",
        )
    if len(found) > 1:
        raise ConflictError(
            Reason.FIELD_INVALID,
            f"{len(found)} accounts are called {wanted}.",
            fix="Name one of them: " + ", ".join(t.account for t in found),
        )
    return found[0]


def _names(enrolment: Enrolment) -> tuple[str, str]:
    return enrolment.username, enrolment.device_id


def _require_unused(target: _Target) -> None:
    if target.enrolment:
        raise ConflictError(
            Reason.ALREADY_ENROLLED,
            f"{target.words} is enrolled with this key: without it this device approves nothing any more.",
            fix="`keyvouch-agent unregister` removes it here and on the server. If the server is gone for good: --yes.",
        )
    if target.staged:
        raise ConflictError(
            Reason.ALREADY_ENROLLED,
            "An interrupted enrolment still needs this account.",
            fix="Run the same `keyvouch-agent enroll` again to finish it, or give it up with --yes.",
        )


def _forget(target: _Target, holders: KeyHolderSet, *, damaged_too: bool) -> bool:
    """The PIN's index out of the TPM, then the files. Without a sound record nobody knows which index: then False."""
    shelf, known = ProviderShelf(holders.makers()), holders.has_tpm_record(target.account)
    try:
        ShelfHolders(shelf, ProviderKind.TPM.value).forget("", target.account, None)
    except DeviceError as error:
        if error.reason is not Reason.VAULT_CORRUPT or not damaged_too:
            raise
        holders.discard_tpm_account(target.account)
        known = False
    finally:
        shelf.close()
    return known


def _forget_records(target: _Target, home: Home) -> None:
    if target.staged:
        Ledger(home).unstage(target.staged)
    if target.enrolment:
        Ledger(home).remove(target.enrolment.device_id)


def _forgotten(target: _Target, *, whole: bool) -> list[str]:
    sentences = [f"Forgotten: {target.words}. Its key and its PIN are not in the TPM any more."]
    if not whole:
        sentences = [
            f"Forgotten: {target.words}. Its files are erased.",
            "What it had in the TPM nobody knows now: `tpm2_getcap handles-nv-index` lists what is there.",
        ]
    if target.enrolment:
        sentences.append("The server still lists this device: remove it there, or tell your administrator.")
    return sentences

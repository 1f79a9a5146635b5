"""The TPM and every account of this home in it, looked at over one connection: for `doctor` and `tpm status`.

    report = look(holders, home)

Looking changes nothing, takes no lock, and waits for a TPM that another program has no longer than it is told. What is
not here: words for people (`commands.tpm_findings`, `commands.tpm_status`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from keyvouch.errors import DeviceError, KeyvouchError, Reason
from keyvouch_agent.home import Home
from keyvouch_agent.key_holders import TPM_FOLDER, KeyHolderSet
from keyvouch_agent.ledger import Enrolment, Ledger
from keyvouch_agent.patience import within
from keyvouch_agent.ports import ProviderKind
from keyvouch_agent.vaults.tpm.connection import Tpm, TpmAccess

if TYPE_CHECKING:  # they load libtss2
    from keyvouch_agent.vaults.tpm.standing import AccountStanding
    from keyvouch_agent.vaults.tpm.survey import TpmSurvey

__all__ = ["SECONDS", "AccountReport", "TpmReport", "look", "patiently"]

SECONDS: Final = 15.0
"""How long a TPM that another program has to itself is waited for."""

_LONGEST_RECORD: Final = 1 << 20

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class AccountReport:
    """An enrolled account, and how its key stands; `trouble` is why that is not known."""

    enrolment: Enrolment
    standing: AccountStanding | None = None
    trouble: KeyvouchError | None = None

    @property
    def problem(self) -> KeyvouchError | None:
        """What a signature would be refused with."""
        return self.standing.trouble if self.standing else self.trouble


@dataclass(frozen=True, slots=True)
class TpmReport:
    """`trouble` is why nothing is known of the TPM; then there is no survey, and no account has a standing."""

    access: TpmAccess
    accounts: tuple[AccountReport, ...] = ()
    abandoned: tuple[str, ...] = ()
    survey: TpmSurvey | None = None
    trouble: DeviceError | None = None

    @property
    def is_needed(self) -> bool:
        """Whether an account has its key in the TPM."""
        return bool(self.accounts)


def look(holders: KeyHolderSet, home: Home, *, seconds: float = SECONDS) -> TpmReport:
    """Look at the TPM. Raises CONFIGURATION for settings that cannot be used, and LEDGER_CORRUPT."""
    access = holders.tpm_access()
    enrolments = [e for e in Ledger(home).enrolments() if e.provider == ProviderKind.TPM]
    abandoned = holders.abandoned_tpm_accounts()
    try:
        access.require_library()
        survey, accounts = patiently(access, lambda: _look(access, home, enrolments), seconds=seconds)
    except DeviceError as error:
        return TpmReport(access, tuple(AccountReport(e, trouble=error) for e in enrolments), abandoned, None, error)
    return TpmReport(access, accounts, abandoned, survey)


def patiently(access: TpmAccess, work: Callable[[], _T], *, seconds: float = SECONDS) -> _T:
    """Do what needs the TPM, and wait no longer than that. Raises `DeviceError(TPM_BUSY)`, and what `work` raises."""
    try:
        return within(seconds, work)
    except TimeoutError:
        raise DeviceError(
            Reason.TPM_BUSY,
            f"The TPM at {access.configuration} did not answer within {seconds:g} seconds.",
            fix="Another program may have it to itself, such as an enrolment that waits for a PIN. Try again after it.",
            metadata={"tcti": access.configuration},
        ) from None


def _look(
    access: TpmAccess, home: Home, enrolments: Sequence[Enrolment]
) -> tuple[TpmSurvey, tuple[AccountReport, ...]]:
    from keyvouch_agent.vaults.tpm.survey import survey  # noqa: PLC0415 - needs libtss2

    with access.open(as_it_is=True) as tpm:
        found = survey(tpm)
        if not access.managed:
            tpm.flush_leftovers()
        return found, tuple(_look_at(tpm, home, enrolment) for enrolment in enrolments)


def _look_at(tpm: Tpm, home: Home, enrolment: Enrolment) -> AccountReport:
    """The files are read beside whoever has locked them: each is replaced as a whole."""
    from keyvouch_agent.vaults.tpm import account, account_file  # noqa: PLC0415
    from keyvouch_agent.vaults.tpm.standing import examine  # noqa: PLC0415

    folder = f"{TPM_FOLDER}/{enrolment.account}"
    try:
        record = _read(home, f"{folder}/{account.FILE_NAME}")
        state = account_file.decode(record) if record is not None else account_file.AccountState()
        key_file = _read(home, f"{folder}/{account.key_file_name(enrolment.credential_id)}")
        return AccountReport(enrolment, examine(tpm, state, enrolment.credential_id, key_file))
    except KeyvouchError as error:
        return AccountReport(enrolment, trouble=error)


def _read(home: Home, name: str) -> bytes | None:
    try:
        return home.read(name, longest=_LONGEST_RECORD)
    except FileNotFoundError:
        return None

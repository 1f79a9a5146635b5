"""An agent's home with one account in an emulated TPM, its PIN made without a server, and what people do with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from keyvouch.ids import CredentialId
from keyvouch_agent.agent_settings import FILE
from keyvouch_agent.bootstrap import Tuning, key_holders
from keyvouch_agent.home import Home
from keyvouch_agent.interactions import GivenPin
from keyvouch_agent.key_holders import TPM_FOLDER
from keyvouch_agent.ledger import Enrolment, Ledger
from keyvouch_agent.pin_standing import check_pin_usable
from keyvouch_agent.ports import Assertion, KeyCreation, KeyUse, Pin, Provider, ProviderCapabilities
from keyvouch_agent.provider_shelf import ProviderKey, ProviderShelf
from keyvouch_agent.tpm_report import AccountReport, TpmReport, look
from keyvouch_bench.tpm_faults import FaultingTcti, FaultPlan
from keyvouch_bench.tpm_tcti import open_tcti
from support.agent_records import sample_enrolment
from support.fake_devices import RP_ID

__all__ = ["PIN", "TpmHome"]

PIN: Final = "493817"
ACCOUNT: Final = "account"


@dataclass
class TpmHome:
    """The home. Connections to the TPM meet the faults of `plan`."""

    home: Home
    tcti: str
    credential_id: CredentialId = field(default_factory=lambda: CredentialId(b""))
    plan: FaultPlan = field(default_factory=FaultPlan)

    @classmethod
    def at(cls, path: Path, tcti: str) -> TpmHome:
        """A home whose agent.toml leads to that TPM."""
        made = cls(Home.open(path), tcti)
        made.settings()
        return made

    @property
    def folder(self) -> Path:
        """Where the account keeps its files."""
        return self.home.path / TPM_FOLDER / ACCOUNT

    @property
    def record(self) -> Path:
        """The account's record."""
        return self.folder / "account.cbor"

    @property
    def key_file(self) -> Path:
        """The file of its key."""
        return self.folder / f"{self.credential_id.hex()[:64]}.pem"

    def settings(self, **more: str) -> None:
        """Write agent.toml."""
        lines = "".join(f'{name} = "{value}"\n' for name, value in {"tcti": self.tcti, **more}.items())
        self.home.write(FILE, f"[tpm]\n{lines}".encode())

    @property
    def tuning(self) -> Tuning:
        """The agent's, over connections that go wrong."""
        return Tuning(open_tcti=lambda: FaultingTcti(open_tcti(self.tcti), self.plan))

    @contextmanager
    def provider(self, *, faulty: bool = True) -> Iterator[Provider]:
        """The account's provider, as a fresh process has it."""
        shelf = ProviderShelf(key_holders(self.home, self.tuning if faulty else None).makers())
        try:
            yield shelf.get(ProviderKey("tpm", ACCOUNT))
        finally:
            shelf.close()

    def enrol(self) -> TpmHome:
        """Set the PIN, make a key, and record the account."""
        creation = KeyCreation(os.urandom(32), RP_ID, b"ada", "ada", (-7, -35, -257))
        with self.provider() as provider, provider.open(GivenPin(Pin(PIN), may_set=True), rp_id=RP_ID) as session:
            self.credential_id = session.create_key(creation).credential_id
        Ledger(self.home).record(self.enrolment())
        return self

    def enrolment(self) -> Enrolment:
        """What the ledger has of the account."""
        made = sample_enrolment(credential_id=self.credential_id).enrolment
        return replace(made, provider="tpm", account=ACCOUNT)

    def capabilities(self) -> ProviderCapabilities:
        """What is known before anybody types a PIN."""
        with self.provider() as provider:
            return provider.capabilities()

    def sign(self, pin: str = PIN) -> Assertion:
        """An approval, step by step as the sign-in ceremony does it."""
        with self.provider() as provider:
            check_pin_usable(provider.capabilities())
            with provider.open(GivenPin(Pin(pin)), rp_id=RP_ID) as session:
                return session.sign(KeyUse(os.urandom(32), RP_ID, self.credential_id))

    def sign_unwarned(self, pin: str = PIN, *, between: Callable[[], Any] = lambda: None) -> Assertion:
        """The same, with something happening to the TPM while the PIN is typed."""
        with self.provider() as provider:
            check_pin_usable(provider.capabilities())
            with provider.open(GivenPin(Pin(pin)), rp_id=RP_ID) as session:
                between()
                return session.sign(KeyUse(os.urandom(32), RP_ID, self.credential_id))

    def report(self) -> TpmReport:
        """What `doctor` and `tpm status` go by."""
        return look(key_holders(self.home, self.tuning), self.home)

    def standing(self) -> AccountReport:
        """How the account stands there."""
        (found,) = self.report().accounts
        return found

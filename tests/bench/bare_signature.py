"""A signature by a TPM with nothing around it: the yardstick for what the PIN gate adds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tpm2_pytss import TPM2B_DIGEST, TPM2B_SENSITIVE_CREATE, TPMS_SENSITIVE_CREATE

from keyvouch.cose import Algorithm
from keyvouch_agent.vaults.tpm.account_file import StorageParent
from keyvouch_agent.vaults.tpm.connection import TpmAccess
from keyvouch_agent.vaults.tpm.parent import choose_parent, open_parent
from keyvouch_agent.vaults.tpm.profile import read_profile
from keyvouch_agent.vaults.tpm.sessions import secret_session
from keyvouch_agent.vaults.tpm.templates import KINDS, channel_key, scheme_of

_AUTH = b"493817"


@dataclass(frozen=True)
class BareKey:
    """A P-256 key whose only guard is its own authorization value."""

    parent: StorageParent
    private: Any
    public: Any

    @classmethod
    def make(cls, access: TpmAccess) -> BareKey:
        with access.open() as tpm:
            handle, parent = choose_parent(tpm, read_profile(tpm))
            sensitive = TPM2B_SENSITIVE_CREATE(TPMS_SENSITIVE_CREATE(userAuth=_AUTH))
            made = tpm.do(tpm.esapi.create, handle, sensitive, channel_key())
            return cls(parent, made[0], made[1])

    def sign(self, access: TpmAccess, digest: bytes) -> None:
        """Parent, Load, StartAuthSession (salted, encrypting), Sign, FlushContext, over a connection of its own."""
        with access.open() as tpm:
            handle = open_parent(tpm, self.parent)
            key = tpm.hold(tpm.do(tpm.esapi.load, handle, self.private, self.public))
            tpm.esapi.tr_set_auth(key, _AUTH)
            session = secret_session(tpm, handle)
            scheme = scheme_of(KINDS[Algorithm.ES256])
            tpm.do(tpm.esapi.sign, key, TPM2B_DIGEST(digest), scheme, None, session)
            tpm.spent(session)

"""The server's configuration: one TOML file in its data directory, read strictly.

[server]
public_listen   = "0.0.0.0:7443"       clients and enrolment
device_listen   = "0.0.0.0:7444"       enrolled agents, mutual TLS
hosts           = ["keys.example.org"] names in the listener certificates
device_endpoint = "keys.example.org:7444"
rp_id           = "keys.example.org"   WebAuthn relying party id: never change it, credentials are bound to it
issuer          = "https://keys.example.org"
certificate     = "/etc/keyvouch/public.pem"   optional: the public listener's own certificate chain and key,
key             = "/etc/keyvouch/public.key"   both or neither; without them the server's own authority signs one
store           = "postgresql://keyvouch@db.example.org/keyvouch?sslmode=verify-full"   optional: a database that
                                       several servers with the same keys may share; without it, a file beside this one

[[trust_anchors]]                      any number: certificates that vouch for authenticators at registration
name            = "Example Keys"       what policies and assurances call it
file            = "/etc/keyvouch/example-root.pem"   one or several certificates
formats         = ["packed", "fido-u2f"]             the attestation statement formats it may vouch in
protection      = "secure_element"     optional: where its authenticators keep keys, software if not said
verification    = "hardware_gated"     optional: what their user verification is worth, software_gated if not said
aaguids         = ["2fc0579f-8113-47ea-b116-bb5a8db9202a"]   optional: the only models it vouches for

[[card_authorities]]                   any number: who certifies whose key it is that is on a smartcard already
name            = "Example Badges"     what policies and assurances call it, and no other anchor
file            = "/etc/keyvouch/badges.pem"         one or several certificates of certification authorities
match           = "upn"                the name in a certificate that is the login name: upn, email, uri or subject_cn
tenant          = "example"            optional: only for this tenant's users
protection      = "smartcard"          optional: where the organisation promises such keys are, software if not said
verification    = "hardware_gated"     optional: what asks for the PIN by the same promise, software_gated if not said
crls            = ["/etc/keyvouch/badges.crl"]       optional: if there are any, each certificate needs a current one
required_eku    = ["1.3.6.1.4.1.311.20.2.2"]         optional: purposes that a certificate must have, all of them
required_policies = ["2.16.840.1.101.3.2.1.3.13"]    optional: the same for certificate policies

[metadata]                             optional: a FIDO metadata file, for all models it knows
blob            = "/etc/keyvouch/mds.jwt"
root            = "/etc/keyvouch/mds-root.pem"
signer          = "mds.fidoalliance.org"             optional: the name in the certificate that signs the file
crls            = ["/etc/keyvouch/mds.crl"]          optional: if there are any, each of its certificates needs one
grace_days      = 30                   optional: how long after its next update the file is still believed

[tpm]                                  optional: whose endorsement keys are believed, beside the makers in the wheel
endorsement_trust = "/etc/keyvouch/tpm-makers"       optional: a folder of further makers' certificates, *.pem
unregistered_manufacturers = ["id:00001014"]         optional: makers that the TCG has not registered: emulators
"""

from __future__ import annotations

import ipaddress
import json
import tomllib
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from keyvouch.errors import KeyvouchError, Reason
from keyvouch_server.card_authorities import CardSettings
from keyvouch_server.card_authorities import read_settings as read_card_settings
from keyvouch_server.ek_trust import TpmSettings
from keyvouch_server.ek_trust import read_settings as read_tpm_settings
from keyvouch_server.store_address import checked_address
from keyvouch_server.trust_anchors import TrustSettings, read_settings

FILE: Final = "keyvouch.toml"
_OPTIONAL: Final = frozenset({"certificate", "key", "plaintext_listen", "store"})


@dataclass(frozen=True, slots=True)
class ServerConfig:
    """See the module's docstring for each field."""

    public_listen: str
    device_listen: str
    hosts: tuple[str, ...]
    device_endpoint: str
    rp_id: str
    issuer: str
    certificate: str = ""
    key: str = ""
    plaintext_listen: str = ""
    store: str = ""
    trust: TrustSettings = field(default_factory=TrustSettings)
    tpm: TpmSettings = field(default_factory=TpmSettings)
    cards: tuple[CardSettings, ...] = ()

    def toml(self) -> str:
        """The text of a new server's file, which has no tables yet. Strings of JSON are strings of TOML."""
        settings = {name: value for name in _SETTINGS if (value := getattr(self, name))}
        lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
        return "\n".join(["[server]", *lines, ""])


_SETTINGS: Final = tuple(f.name for f in fields(ServerConfig) if f.name not in ("trust", "tpm", "cards"))
_TABLES: Final = frozenset({"server", "trust_anchors", "card_authorities", "metadata", "tpm"})
_OTHERS: Final = "[[trust_anchors]], [[card_authorities]], [metadata] and [tpm]"


def load_config(data: Path) -> ServerConfig:
    """Read the configuration of a data directory. Raises `KeyvouchError(CONFIGURATION)`."""
    path = data / FILE
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise broken(f"{path} does not exist", f"Run: keyvouch-server init --data {data}") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise broken(f"{path} cannot be read: {error}", "Correct the file.") from None
    section = document.get("server")
    if not document.keys() <= _TABLES or not isinstance(section, dict):
        raise broken(f"{path} has a section [server], may have {_OTHERS}, and nothing else", "Correct the file.")
    trust = read_settings(document.get("trust_anchors"), document.get("metadata"), folder=data)
    cards = read_card_settings(document.get("card_authorities"), folder=data)
    tpm = read_tpm_settings(document.get("tpm"), folder=data)
    return replace(_checked(path, section), trust=trust, tpm=tpm, cards=cards)


def _checked(path: Path, section: dict[str, Any]) -> ServerConfig:
    known = set(_SETTINGS)
    unknown = section.keys() - known
    missing = known - section.keys() - _OPTIONAL
    if unknown or missing:
        names = ", ".join(sorted(unknown or missing))
        raise broken(f"{path}: {'unknown' if unknown else 'missing'} settings: {names}", "Correct the file.")
    hosts = section.pop("hosts")
    texts = [*section.values(), *(hosts if isinstance(hosts, list) else [None])]
    if not hosts or not all(isinstance(t, str) for t in texts):
        raise broken(f"{path}: every setting is a text, hosts a list of texts", "Correct the file.")
    if not all((*hosts, *(section[name] for name in known - _OPTIONAL - {"hosts"}))):
        raise broken(f"{path}: only {', '.join(sorted(_OPTIONAL))} may be empty", "Correct the file.")
    if bool(section.get("certificate")) != bool(section.get("key")):
        raise broken(f"{path}: certificate and key belong together", "Set both or neither.")
    if section.get("plaintext_listen") and not is_loopback(section["plaintext_listen"]):
        raise broken(f"{path}: plaintext_listen is not a loopback address", "Use 127.0.0.1:PORT or [::1]:PORT.")
    check_store(section.get("store", ""))
    return ServerConfig(hosts=tuple(hosts), **section)


def check_store(address: str) -> None:
    """Raises `KeyvouchError(CONFIGURATION)` for the address of a store that cannot be used; empty is a file."""
    try:
        if address:
            checked_address(address)
    except ValueError as wrong:
        fix = (
            "Correct the address. Over a network sslmode=verify-full is the safe way, and sslmode=disable the open one."
        )
        raise broken(str(wrong), fix) from None


def is_loopback(listen: str) -> bool:
    """Whether an address to listen on, `host:port`, can be reached from this machine only."""
    try:
        return ipaddress.ip_address(listen.rpartition(":")[0].strip("[]")).is_loopback
    except ValueError:
        return False


def broken(why: str, fix: str) -> KeyvouchError:
    """The error for a configuration that cannot be used."""
    return KeyvouchError(Reason.CONFIGURATION, f"The server cannot start: {why}.", fix=fix)

"""The stored session of the command line: where to sign in, as whom, and the session in hand.

One file, mode 0600, in a directory of the user's own: `$KEYVOUCH_HOME`, else `$XDG_STATE_HOME/keyvouch`, else
`~/.local/state/keyvouch`. Writing replaces it atomically; a lock file beside it keeps two processes from refreshing
at once. Whoever can read the file has the session, so a file others can read is refused.

Not here: asking the server anything.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.message import DecodeError

from keyvouch.errors import KeyvouchError, MalformedError, Reason, RefusedError, UnauthenticatedError, UnavailableError
from keyvouch.ids import ServerId
from keyvouch.v1 import common_pb2
from keyvouch_client.connection import Connection
from keyvouch_client.session import Session

__all__ = ["KeptSession", "SessionFile", "StoredState", "Target", "not_signed_in", "state_directory"]

_VERSION = 1
_MOST_KNOWN = 50
"""Users at servers for whom this client is known; the one that signed in longest ago is dropped first."""
_LONGEST = 256 << 10


@dataclass(frozen=True, slots=True)
class Target:
    """Where and as whom the last sign-in was; empty strings where nothing is known."""

    server: str = ""
    ca_file: str = ""
    insecure_loopback: bool = False
    tenant: str = ""
    username: str = ""


@dataclass(frozen=True, slots=True, repr=False)
class KeptSession:
    """A session at rest. `proof_key` is PKCS #8 DER, empty for a session of an access pass."""

    server_id: ServerId
    tokens: common_pb2.SessionTokens
    details: common_pb2.Session
    proof_key: bytes = b""


@dataclass(frozen=True, slots=True)
class StoredState:
    """What the file holds."""

    target: Target = Target()
    session: KeptSession | None = None
    known_clients: Mapping[str, str] = field(default_factory=dict, repr=False)
    """By server, tenant and user: what this client shows there to be told apart from strangers."""

    def known_client(self, target: Target) -> str:
        """What to show for `target`; empty where nobody has signed in there from here."""
        return self.known_clients.get(_who(target), "")

    def knowing(self, target: Target, known_client: str) -> Mapping[str, str]:
        """The same with what `target` gave last."""
        if not known_client:
            return self.known_clients
        others = {who: token for who, token in self.known_clients.items() if who != _who(target)}
        return dict([*others.items(), (_who(target), known_client)][-_MOST_KNOWN:])


def state_directory(environment: Mapping[str, str]) -> Path:
    """The directory of the user's state, by the environment it is asked for."""
    if home := environment.get("KEYVOUCH_HOME"):
        return Path(home)
    if state := environment.get("XDG_STATE_HOME"):
        return Path(state) / "keyvouch"
    return Path.home() / ".local" / "state" / "keyvouch"


def not_signed_in() -> UnauthenticatedError:
    """The error of whoever needs a session and has none."""
    return UnauthenticatedError(
        Reason.CREDENTIALS_MISSING, "You are not signed in.", fix="Sign in with `keyvouch sign-in`."
    )


class SessionFile:
    """Reads and writes the stored state in `directory`.

    Raises `RefusedError(VAULT_PERMISSIONS)` for a file or directory that others could read or change,
    `MalformedError(LEDGER_CORRUPT)` for a file that is no stored state, `UnavailableError` when the disk fails.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.path = directory / "session.json"

    def read(self) -> StoredState:
        """The stored state; an empty one where there is no file."""
        with _disk_errors(self.path):
            try:
                descriptor = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except FileNotFoundError:
                return StoredState()
            with os.fdopen(descriptor, "rb") as file:
                _check_private(os.fstat(file.fileno()), self.path, 0o077)
                return _parse(file.read(_LONGEST))

    def write(self, state: StoredState) -> None:
        """Replace the file; after a crash it holds the old state or the new one."""
        data = json.dumps(_document(state)).encode()
        with _disk_errors(self.path):
            self._make_directory()
            draft = self.directory / f".session-{secrets.token_hex(8)}"
            try:
                _write_private(draft, data)
                draft.replace(self.path)
            finally:
                draft.unlink(missing_ok=True)
            _sync_directory(self.directory)

    def forget_session(self) -> None:
        """Drop the session, and remember where to sign in next time."""
        with self.exclusive():
            self.write(replace(self.read(), session=None))

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[None]:
        """Wait until no other process holds this, and hold it."""
        with _disk_errors(self.path):
            self._make_directory()
            descriptor = os.open(
                self.directory / "session.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def open_session(self, state: StoredState, connection: Connection) -> Session:
        """The stored session over `connection`, whose refreshes are stored too. Raises `UnauthenticatedError`."""
        kept = state.session
        if kept is None:
            raise not_signed_in()
        return Session(
            connection,
            server_id=kept.server_id,
            tokens=kept.tokens,
            details=kept.details,
            proof_key=_load_key(kept.proof_key),
            keeper=_Keeper(self, kept.tokens.session_id),
        )

    def keep(self, target: Target, session: Session) -> None:
        """Store a new session in place of the old one."""
        kept = KeptSession(session.server_id, session.tokens, session.details, _dump_key(session.proof_key))
        with self.exclusive():
            try:
                before = self.read()
            except KeyvouchError:  # it is written anew, as whoever signs in wants
                before = StoredState()
            self.write(StoredState(target, kept, before.knowing(target, session.known_client)))

    def _make_directory(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_private(self.directory.stat(), self.directory, 0o022)


class _Keeper:
    """Stores the tokens of one session, unless another has taken its place in the file."""

    def __init__(self, file: SessionFile, session_id: str) -> None:
        self._file = file
        self._session_id = session_id

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        return self._file.exclusive()

    def load(self) -> common_pb2.SessionTokens | None:
        kept = self._file.read().session
        return kept.tokens if kept is not None and kept.tokens.session_id == self._session_id else None

    def save(self, tokens: common_pb2.SessionTokens) -> None:
        state = self._file.read()
        if state.session is not None and state.session.tokens.session_id == self._session_id:
            self._file.write(replace(state, session=replace(state.session, tokens=tokens)))


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UnavailableError(
            Reason.STORE_UNAVAILABLE,
            f"The stored session {path} cannot be used: {error.strerror}.",
            fix="Check the directory, or name another one with KEYVOUCH_HOME.",
        ) from error


def _check_private(status: os.stat_result, path: Path, forbidden: int) -> None:
    if status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & forbidden:
        return
    raise RefusedError(
        Reason.VAULT_PERMISSIONS,
        f"{path} belongs to somebody else, or others can reach it.",
        fix=f"Make it yours alone with `chmod go= {path}`, and sign in again if others may have read it.",
    )


def _write_private(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _who(target: Target) -> str:
    return "\n".join((target.server, target.tenant, target.username)).casefold()


def _document(state: StoredState) -> dict[str, object]:
    target, kept = state.target, state.session
    return {
        "version": _VERSION,
        "target": {name: getattr(target, name) for name in Target.__slots__},
        "session": kept
        and {
            "server_id": kept.server_id.hex(),
            "tokens": base64.b64encode(kept.tokens.SerializeToString()).decode(),
            "details": base64.b64encode(kept.details.SerializeToString()).decode(),
            "proof_key": base64.b64encode(kept.proof_key).decode(),
        },
        "known_clients": dict(state.known_clients),
    }


def _parse(data: bytes) -> StoredState:
    try:
        document = json.loads(data)
        if document["version"] != _VERSION:
            raise ValueError("unknown version")
        kept = document["session"]
        known = {str(who): str(token) for who, token in document.get("known_clients", {}).items()}
        return StoredState(Target(**document["target"]), None if kept is None else _parse_session(kept), known)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, binascii.Error, DecodeError):
        raise _corrupt() from None


def _parse_session(kept: Mapping[str, str]) -> KeptSession:
    return KeptSession(
        server_id=ServerId(bytes.fromhex(kept["server_id"])),
        tokens=common_pb2.SessionTokens.FromString(base64.b64decode(kept["tokens"], validate=True)),
        details=common_pb2.Session.FromString(base64.b64decode(kept["details"], validate=True)),
        proof_key=base64.b64decode(kept["proof_key"], validate=True),
    )


def _corrupt() -> KeyvouchError:
    return MalformedError(
        Reason.LEDGER_CORRUPT,
        "The stored session cannot be read.",
        fix="Sign in again with `keyvouch sign-in --server ...`; the file is written anew.",
    )


def _dump_key(key: ec.EllipticCurvePrivateKey | None) -> bytes:
    if key is None:
        return b""
    return key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _load_key(data: bytes) -> ec.EllipticCurvePrivateKey | None:
    if not data:
        return None
    try:
        key = serialization.load_der_private_key(data, password=None)
    except ValueError:
        raise _corrupt() from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise _corrupt()
    return key

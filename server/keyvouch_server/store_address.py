"""The address of a store that is not a file of the data directory: what it may be, and how it is shown to people."""

from __future__ import annotations

import ipaddress
from os import environ
from urllib.parse import SplitResult, parse_qs, parse_qsl, quote, urlencode, urlsplit


def checked_address(address: str) -> str:
    """The address, as it is. Raises `ValueError` with what is wrong with it, in words that end a sentence.

    What goes to the database and back is as good as a sign-in. So an address that leads over a network says how the way
    is protected (`sslmode`): the usual fallback to an open connection is nothing that should happen unseen.
    """
    parts = urlsplit(address)
    if parts.scheme not in ("postgresql", "postgres") or not parts.path.strip("/"):
        raise ValueError("a store's address is postgresql://USER@HOST/DATABASE")
    if "@" in parts.path or parts.fragment:
        raise ValueError(
            "a password in a store's address has its special characters written as %2F, %40, %23 and so on"
        )
    query = parse_qs(parts.query)
    if "service" in query or "PGSERVICE" in environ:
        raise ValueError("where a store is has to stand in its address, and not in a PostgreSQL service (PGSERVICE)")
    far = [host for host in _hosts(parts) if not _is_here(host)]
    if far and "sslmode" not in query:
        raise ValueError(f"the store is on another machine, {far[0]}, and its address does not say sslmode")
    return address


def without_password(address: str) -> str:
    """The same for people to read."""
    parts = urlsplit(address)
    user, at, hosts = parts.netloc.rpartition("@")
    shown = [(name, value) for name, value in parse_qsl(parts.query) if "password" not in name]
    query = urlencode(shown, safe="/", quote_via=quote)
    return parts._replace(netloc=f"{user.partition(':')[0]}{at}{hosts}", query=query).geturl()


def _hosts(parts: SplitResult) -> list[str]:
    """Names and addresses, without ports. An empty one is the database's socket on this machine."""
    named = parts.netloc.rpartition("@")[2].split(",")
    hosts = [host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host for host in named]
    said = [host for value in parse_qs(parts.query).get("host", []) for host in value.split(",")]
    found = [host.strip("[]") for host in [*hosts, *said] if host]
    return found or environ.get("PGHOST", "").split(",")  # as the driver does


def _is_here(host: str) -> bool:
    if not host or host.startswith("/") or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

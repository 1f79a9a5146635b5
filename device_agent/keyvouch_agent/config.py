"""Where the agent's home is. Everything else is in the ledger, or is said on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from keyvouch.errors import Reason, UnavailableError

__all__ = ["HOME_VARIABLE", "home_path"]

HOME_VARIABLE = "KEYVOUCH_AGENT_HOME"


def home_path(given: str | None, environment: Mapping[str, str]) -> Path:
    """The home: as given, else $KEYVOUCH_AGENT_HOME, else keyvouch-agent in $XDG_STATE_HOME or ~/.local/state.

    Raises `UnavailableError(CONFIGURATION)` when none of these is known.
    """
    if chosen := given or environment.get(HOME_VARIABLE):
        return Path(chosen)
    if state := environment.get("XDG_STATE_HOME"):
        return Path(state) / "keyvouch-agent"
    if user := environment.get("HOME"):
        return Path(user) / ".local" / "state" / "keyvouch-agent"
    raise UnavailableError(
        Reason.CONFIGURATION,
        "The agent does not know where to keep its state: HOME is not set.",
        fix=f"Give a directory with --home, or set {HOME_VARIABLE}.",
    )

"""The agent's log: one line per event on standard error, with named fields that cannot forge a line.

    2026-11-21T08:00:00Z warning prompt-refused device="dev_..." reason="wrong_server"

Fields whose names speak of secrets are never written, whatever they hold, and `Pin` and `Secret` print asterisks.
"""

from __future__ import annotations

import json
import logging
import time
from enum import StrEnum
from typing import IO

__all__ = ["AgentLog", "open_log"]

_SECRET_NAMES = ("pin", "pass", "token", "secret", "key", "authorization", "password")
_LONGEST = 500


class AgentLog:
    """Writes events. An event is a short name in lower case with hyphens; fields are told as keywords."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: str, **fields: object) -> None:
        """For whoever looks for a fault."""
        self._logger.debug(_line(event, fields))

    def info(self, event: str, **fields: object) -> None:
        """Something happened as it should."""
        self._logger.info(_line(event, fields))

    def warning(self, event: str, **fields: object) -> None:
        """Something was refused or failed, and the agent goes on."""
        self._logger.warning(_line(event, fields))

    def error(self, event: str, **fields: object) -> None:
        """Something needs a person."""
        self._logger.error(_line(event, fields))


def open_log(stream: IO[str], *, level: int = logging.INFO) -> AgentLog:
    """A log of its own that writes to `stream`; the program's other loggers are left alone."""
    logger = logging.Logger("keyvouch-agent", level)
    handler = logging.StreamHandler(stream)
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logger.addHandler(handler)
    return AgentLog(logger)


def _line(event: str, fields: dict[str, object]) -> str:
    return " ".join([event, *(f"{name}={_shown(name, value)}" for name, value in fields.items())])


def _shown(name: str, value: object) -> str:
    if any(word in name.lower() for word in _SECRET_NAMES):
        return '"***"'
    if isinstance(value, bool | int | float):
        return str(value)
    shown = value.value if isinstance(value, StrEnum) else str(value)
    return json.dumps(shown[:_LONGEST])

"""Waiting no longer than a person would: for what blocks inside of a library and cannot be told to stop.

A TPM without a resource manager serves one program at a time, and makes every other one wait for as long as that takes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

__all__ = ["within"]

_T = TypeVar("_T")


def within(seconds: float, work: Callable[[], _T]) -> _T:
    """Do `work` on a thread of its own, and return or raise what came of it.

    Raises `TimeoutError` when it takes longer. The thread is left to itself then, and ends with the program at the
    latest: `work` should hold nothing that somebody else will want.
    """
    outcome: Future[_T] = Future()
    threading.Thread(target=_fulfil, args=(outcome, work), name="patience", daemon=True).start()
    return outcome.result(seconds)


def _fulfil(outcome: Future[_T], work: Callable[[], _T]) -> None:
    try:
        outcome.set_result(work())
    except BaseException as error:  # noqa: BLE001 - it is raised where it is waited for
        outcome.set_exception(error)

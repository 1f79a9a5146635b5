"""A terminal for the demonstration: a program that asks a person is asked on a real one, and the demo types."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Final

__all__ = ["PATIENCE_SECONDS", "at_terminal"]

PATIENCE_SECONDS: Final = 30.0

_REACTION_SECONDS: Final = 0.5
"""How long the person takes to read. The agent throws away what is typed ahead of a question."""

_TAKE: Final = "import os, sys; os.open(os.ttyname(0), os.O_RDWR); os.execv(sys.argv[1], sys.argv[1:])"
"""The first terminal that the leader of a session opens becomes its own, which `/dev/tty` names."""


def at_terminal(command: Sequence[str], answers: Sequence[tuple[str, str]], environment: Mapping[str, str]) -> str:
    """Run a program at a terminal of its own; for each pair wait for the question, then type the answer.

    Returns what stood on the screen. Raises `RuntimeError` where a question does not come, or the program fails.
    """
    screen, terminal = pty.openpty()
    process = subprocess.Popen(  # noqa: S603 - our own program
        [sys.executable, "-c", _TAKE, *command],
        stdin=terminal, stdout=terminal, stderr=terminal, env=dict(environment), start_new_session=True,
    )  # fmt: skip
    os.close(terminal)
    try:
        shown = ""
        for question, answer in answers:
            shown += _until(screen, question)
            time.sleep(_REACTION_SECONDS)
            os.write(screen, f"{answer}\n".encode())
        shown += _until(screen, "")
    finally:
        os.close(screen)
        status = process.wait(PATIENCE_SECONDS)
    if status:
        raise RuntimeError(f"{' '.join(command)} failed:\n{shown}")
    return shown.replace("\r\n", "\n")


def _until(screen: int, question: str) -> str:
    """What is shown until the question is there, or, without one, until the program ends."""
    end, shown = time.monotonic() + PATIENCE_SECONDS, ""
    while not question or question not in shown:
        ready, _, _ = select.select([screen], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            raise RuntimeError(f"the question {question!r} did not come:\n{shown}")
        try:
            data = os.read(screen, 4096)
        except OSError:  # the program has closed its end
            data = b""
        if not data:
            if question:
                raise RuntimeError(f"the program ended before it asked {question!r}:\n{shown}")
            return shown
        shown += data.decode("utf-8", "replace")
    return shown

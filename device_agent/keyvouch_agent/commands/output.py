"""What a command says: sentences for people, or JSON for programs. Results on stdout, all else on stderr.

With `--json`: one object per line on stdout; a failure is {"error": {"kind", "reason", "message", "fix"}} on stderr.
JSON is written in ASCII, so texts of a peer cannot act on a terminal there either.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import IO, Final

from keyvouch.errors import KeyvouchError
from keyvouch_agent.commands.prerequisite_words import prerequisite_lines
from keyvouch_agent.prompts.inert import inert
from keyvouch_agent.views import error_document

__all__ = ["Output"]

_LONGEST: Final = 600
"""Columns of a sentence."""


class Output:
    """Where a command speaks. `as_json` is the person's choice on the command line."""

    def __init__(self, *, as_json: bool, out: IO[str] | None = None, err: IO[str] | None = None) -> None:
        self.as_json = as_json
        self._out = out or sys.stdout
        self._err = err or sys.stderr

    def result(self, document: Mapping[str, object], *sentences: str) -> None:
        """The result: the document for programs, or the sentences for people."""
        if self.as_json:
            sentences = (json.dumps(document),)
        for sentence in sentences:
            self._out.write(sentence + "\n")
        self._out.flush()

    def progress(self, sentence: str) -> None:
        """What takes long, while it does. The server's words may be in it: names of devices."""
        line = json.dumps({"progress": sentence}) if self.as_json else inert(sentence, longest=_LONGEST)
        self._err.write(line + "\n")
        self._err.flush()

    def failure(self, error: KeyvouchError) -> None:
        """Why it did not work, and what to do next."""
        if self.as_json:
            self._err.write(json.dumps({"error": error_document(error)}) + "\n")
            return
        self._err.write(f"error: {inert(error.message, longest=_LONGEST)}\n")
        if error.fix:
            self._err.write(f"  {inert(error.fix, longest=_LONGEST)}\n")
        for line in prerequisite_lines(error):
            self._err.write(f"  {line}\n")
        left = getattr(error, "retries_left", None)
        if left is not None:
            self._err.write(f"  PIN tries left: {left}\n")

"""sign-in: opens a session for an app on this device, by the running agent; the tokens go to standard output."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping

from keyvouch_agent.commands.asking import ask_secret, open_terminal, read_secret
from keyvouch_agent.commands.decisions import PATIENCE_SECONDS, last_try, touch_line
from keyvouch_agent.commands.output import Output
from keyvouch_agent.home import Home
from keyvouch_agent.local_client import call_agent
from keyvouch_agent.pin_standing import check_told_pin
from keyvouch_agent.prompts.card import pin_line, prompt_card, utc

__all__ = ["sign_in"]


def sign_in(arguments: argparse.Namespace, home: Home, output: Output) -> None:
    """Show what is signed, ask for the PIN, print the session."""
    begun = call_agent(
        home,
        "begin_sign_in",
        account=arguments.account or "",
        app_id=arguments.app,
        app_name=arguments.app_name or arguments.app,
        audience=arguments.audience or "",
        message=arguments.message or "",
    )
    check_told_pin(_standing(begun), last_try=arguments.last_try)
    typed = asyncio.run(_pin(arguments, begun))
    output.progress(touch_line(begun, _standing(begun)))
    answer = {"prompt_id": str(begun.get("prompt_id", "")), "pin": typed, **last_try(arguments)}
    session = call_agent(home, "sign_in", seconds=PATIENCE_SECONDS, **answer)
    until = utc(session.get("session_expires_at"))
    output.progress(f"Signed in until {until}. The tokens go to standard output: whoever reads them there holds them.")
    output.result(session, json.dumps(session, indent=2))


async def _pin(arguments: argparse.Namespace, begun: Mapping[str, object]) -> str:
    if arguments.pin_fd is not None:
        return read_secret(arguments.pin_fd)
    standing = _standing(begun)
    with open_terminal() as lines:
        lines.show(prompt_card(begun, standing))
        if not standing.get("asks_pin", True):
            return ""
        return await ask_secret(lines, f"PIN ({pin_line(standing)}): ")


def _standing(begun: Mapping[str, object]) -> Mapping[str, object]:
    pin = begun.get("pin")
    return pin if isinstance(pin, dict) else {}

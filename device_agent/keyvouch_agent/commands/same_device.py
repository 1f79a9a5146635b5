"""sign-in: opens a session for an app on this device, by the running agent; the tokens go to standard output."""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Mapping

from keyvouch_agent.commands.asking import ask_secret, open_terminal, read_secret
from keyvouch_agent.commands.output import Output
from keyvouch_agent.home import Home
from keyvouch_agent.local_client import call_agent
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
    typed = asyncio.run(_pin(arguments, begun))
    output.progress("Waiting for the server.")
    session = call_agent(home, "sign_in", prompt_id=str(begun.get("prompt_id", "")), pin=typed)
    until = utc(session.get("session_expires_at"))
    output.progress(f"Signed in until {until}. The tokens go to standard output: whoever reads them there holds them.")
    output.result(session, json.dumps(session, indent=2))


async def _pin(arguments: argparse.Namespace, begun: Mapping[str, object]) -> str:
    if arguments.pin_fd is not None:
        return read_secret(arguments.pin_fd)
    pin = begun.get("pin")
    standing = pin if isinstance(pin, dict) else {}
    with open_terminal() as lines:
        lines.show(prompt_card(begun, standing))
        return await ask_secret(lines, f"PIN ({pin_line(standing)}): ")

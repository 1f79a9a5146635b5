"""pending, approve, deny, report: decisions by the running agent, asked for over its socket."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping

from keyvouch.errors import DeviceError, KeyvouchError, Reason, RefusedError, error_for
from keyvouch_agent.commands.asking import ask_secret, open_terminal, read_secret
from keyvouch_agent.commands.output import Output
from keyvouch_agent.home import Home
from keyvouch_agent.local_client import call_agent
from keyvouch_agent.prompts.card import pin_line, prompt_card
from keyvouch_agent.prompts.inert import inert

__all__ = ["approve", "deny", "pending", "report"]


def pending(_arguments: argparse.Namespace, home: Home, output: Output) -> None:
    """List the prompts that wait."""
    document = call_agent(home, "pending")
    prompts = document.get("prompts")
    shown = [prompt_card(p) for p in prompts if isinstance(p, dict)] if isinstance(prompts, list) else []
    output.result(document, *(shown or ["No prompt is waiting."]))


def approve(arguments: argparse.Namespace, home: Home, output: Output) -> None:
    """Approve one prompt."""
    prompt = call_agent(home, "show", prompt_id=arguments.prompt or "")
    pin = prompt.get("pin")
    standing = pin if isinstance(pin, dict) else {}
    if standing.get("retries_left") == 0:
        raise DeviceError(
            Reason.PIN_BLOCKED,
            "The PIN of this key is blocked after too many wrong tries.",
            fix="Deny the request with `keyvouch-agent deny`; `keyvouch-agent doctor` says how to get a new key.",
            retries_left=0,
        )
    number, typed = asyncio.run(_number_and_pin(arguments, prompt, standing))
    output.progress("Waiting for the server.")
    outcome = call_agent(home, "approve", prompt_id=str(prompt.get("prompt_id", "")), number=number, pin=typed)
    _conclude(outcome, output)


def deny(arguments: argparse.Namespace, home: Home, output: Output) -> None:
    """Deny one prompt."""
    _conclude(call_agent(home, "deny", prompt_id=arguments.prompt or ""), output)


def report(arguments: argparse.Namespace, home: Home, output: Output) -> None:
    """Deny one prompt and say that it was not this person."""
    _conclude(call_agent(home, "report", prompt_id=arguments.prompt or ""), output)


async def _number_and_pin(
    arguments: argparse.Namespace, prompt: Mapping[str, object], standing: Mapping[str, object]
) -> tuple[str, str]:
    """What is not given is asked on the terminal, after the card and the PIN last."""
    number = arguments.number
    if number is not None and arguments.pin_fd is not None:
        return str(number), read_secret(arguments.pin_fd)
    with open_terminal() as lines:
        lines.show(prompt_card(prompt, standing))
        if number is None:
            question = f"Number shown where you sign in ({prompt.get('number_digits')} digits): "
            number = (await lines.ask(question) or "").strip()
        if arguments.pin_fd is not None:
            return str(number), read_secret(arguments.pin_fd)
        return str(number), await ask_secret(lines, f"PIN ({pin_line(standing)}): ")


def _conclude(outcome: Mapping[str, object], output: Output) -> None:
    """An accepted or queued decision is a result; a refused one is a failure."""
    state = str(outcome.get("state"))
    if outcome.get("accepted"):
        output.result(outcome, f"Done: {state}.")
    elif state == "queued":
        output.result(outcome, str(outcome.get("message")))
    else:
        raise _refusal(outcome, state)


def _refusal(outcome: Mapping[str, object], state: str) -> KeyvouchError:
    message = inert(str(outcome.get("message") or f"The server did not take the answer; the request is {state}."))
    return error_for(
        RefusedError.__name__,
        str(outcome.get("reason") or Reason.CHALLENGE_CONSUMED.value),
        message,
        fix="Begin the sign-in again, if it was you.",
        metadata={"state": state, "prompt_id": str(outcome.get("prompt_id", ""))},
    )

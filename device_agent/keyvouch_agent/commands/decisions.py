"""pending, approve, deny, report: decisions by the running agent, asked for over its socket."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping

from keyvouch.errors import KeyvouchError, Reason, RefusedError, error_for
from keyvouch_agent.commands.asking import ask_secret, open_terminal, read_secret
from keyvouch_agent.commands.output import Output
from keyvouch_agent.home import Home
from keyvouch_agent.local_client import call_agent
from keyvouch_agent.pin_standing import check_told_pin
from keyvouch_agent.ports import ProviderKind
from keyvouch_agent.prompts.card import number_question, pin_line, prompt_card
from keyvouch_agent.prompts.inert import inert

__all__ = ["PATIENCE_SECONDS", "approve", "deny", "last_try", "pending", "report", "touch_line"]

PATIENCE_SECONDS = 240.0
"""For the agent's answer: a security key may have to be fetched, connected and touched first."""


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
    check_told_pin(standing, last_try=arguments.last_try)
    number, typed = asyncio.run(_number_and_pin(arguments, prompt, standing))
    output.progress(touch_line(prompt, standing))
    prompt_id = str(prompt.get("prompt_id", ""))
    answer = {"prompt_id": prompt_id, "number": number, "pin": typed, **last_try(arguments)}
    outcome = call_agent(home, "approve", seconds=PATIENCE_SECONDS, **answer)
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
    if number is not None and (arguments.pin_fd is not None or not standing.get("asks_pin", True)):
        return str(number), "" if arguments.pin_fd is None else read_secret(arguments.pin_fd)
    with open_terminal() as lines:
        lines.show(prompt_card(prompt, standing))
        if number is None:
            number = (await lines.ask(number_question(prompt)) or "").strip()
        if arguments.pin_fd is not None:
            return str(number), read_secret(arguments.pin_fd)
        if not standing.get("asks_pin", True):
            return str(number), ""
        return str(number), await ask_secret(lines, f"PIN ({pin_line(standing)}): ")


def last_try(arguments: argparse.Namespace) -> dict[str, str]:
    """For the agent: that the last try of the PIN may be spent, if the person has said so."""
    return {"last_try": "yes"} if arguments.last_try else {}


def touch_line(prompt: Mapping[str, object], standing: Mapping[str, object]) -> str:
    """What happens next. A security key waits for a touch, and if it is not there, for that first."""
    if prompt.get("provider") == ProviderKind.SMARTCARD and not standing.get("asks_pin", True):
        return "Type the PIN on the reader."
    if prompt.get("provider") != ProviderKind.FIDO2:
        return "Waiting for the server."
    if not standing.get("connected", True):
        return "Connect the security key that this account is enrolled with, and touch it."
    return "Touch the security key when it blinks."


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

"""run: the long-lived agent, with prompts in the terminal it was started from, or quietly in the background."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import sys
from collections.abc import Coroutine
from contextlib import suppress

from keyvouch.errors import UsageError
from keyvouch_agent import bootstrap
from keyvouch_agent.agent import Agent
from keyvouch_agent.commands.asking import open_terminal
from keyvouch_agent.commands.output import Output
from keyvouch_agent.home import Home
from keyvouch_agent.ledger import Ledger
from keyvouch_agent.logs import open_log
from keyvouch_agent.prompts.terminal import TerminalPrompts
from keyvouch_agent.system import forbid_core_dumps

__all__ = ["run"]


def run(arguments: argparse.Namespace, home: Home, output: Output) -> None:
    """Run until SIGTERM, SIGINT or the local API's `stop`."""
    forbid_core_dumps()
    asyncio.run(_run(home, output, quiet=arguments.quiet_prompts or output.as_json))


async def _run(home: Home, output: Output, *, quiet: bool) -> None:
    interactive = not quiet and sys.stdin.isatty()
    log = open_log(sys.stderr, level=logging.ERROR if interactive else logging.INFO)
    signalled, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled.set)
    async with bootstrap.run_agent(home=home, log=log) as agent:
        log.info("ready", home=home.path)
        if not Ledger(home).enrolments():
            output.progress("No account is enrolled yet. `keyvouch-agent enroll` adds one while this agent runs.")
        elif interactive:
            output.progress("Waiting for sign-in requests. Ctrl-C ends the agent.")
        company = asyncio.create_task(_keep_company(agent, output, interactive=interactive))
        try:
            await _first_of(agent.stopped(), signalled.wait(), _failure_of(company))
            if interactive:  # on a line of its own, after the ^C or the question that stands there
                if not output.as_json:
                    output.progress("")  # after the ^C that the terminal shows
                output.progress("The agent has ended. Sign-in requests do not reach this device until it runs again.")
        finally:
            company.cancel()
            with suppress(asyncio.CancelledError):
                await company


async def _first_of(*waits: Coroutine[object, object, object]) -> None:
    """Wait for the first to end; raise what it raised."""
    tasks = [asyncio.create_task(wait) for wait in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()


async def _failure_of(company: asyncio.Task[None]) -> None:
    """Only ends with an error: an agent whose terminal has gone away goes on in the background."""
    await asyncio.shield(company)
    await asyncio.Event().wait()


async def _keep_company(agent: Agent, output: Output, *, interactive: bool) -> None:
    """Prompts on the terminal, events for `--json`, or nothing."""
    if interactive:
        with suppress(UsageError), open_terminal() as lines:
            await TerminalPrompts(agent, lines).run()
    elif output.as_json:
        with agent.watch() as events:
            while True:
                output.result(await events.get())

"""`./run demo`: the main job end to end with real processes, told step by step, and three attacks that fail.

A server, the administrator's agent, Ada's agent and the `keyvouch` client run apart from each other and talk over TLS
on the loopback. Everything lives in a temporary directory that is gone afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from keyvouch.errors import KeyvouchError
from keyvouch.statement import SignInOffer
from keyvouch.v1 import prompts_pb2 as prompts
from keyvouch_bench.demo_keys import DemoKeys, chosen
from keyvouch_bench.demo_lost_phone import LostPhone
from keyvouch_bench.demo_people import PATIENCE_SECONDS, PIN, WRONG_PIN, Person, Stage, output_of
from keyvouch_bench.device import BenchDevice, PromptStream, enrol_with_pass
from keyvouch_bench.server_process import ServerProcess
from keyvouch_client import Connection, SignIn


def _read_number(stage: Stage, process: subprocess.Popen[str]) -> str:
    """The number the client shows, read as a person would: from the screen, until the client waits."""
    number = ""
    for line in output_of(process):
        stage.output(line)
        found = re.search(r"Number: ([0-9]{2,8})", line)
        number = found.group(1) if found else number
        if number and line.startswith("Waiting"):
            return number
    raise RuntimeError("the client showed no number")


def _type_number(stage: Stage, shown: str) -> str:
    """The number as typed on the device: by the person at the terminal, else by the demo, which says so."""
    if not stage.interactive:
        stage.tell(f"There is no terminal, so the demo itself types the number: {shown}")
        return shown
    stage.tell("You hold the device now. The demo approves with your number, and gives the PIN itself.")
    while True:
        typed = input("   Type the number you see above on the device: ").strip()
        if typed == shown:
            return typed
        stage.tell(
            "That is not the number shown. On a real device this one try would be spent; the demo lets you try again."
        )


def sign_in(stage: Stage, person: Person) -> None:
    """One sign-in: the client waits, the agent shows, the person types number and PIN."""
    with person.signing_in() as process:
        number = _read_number(stage, process)
        person.wait_for_prompt()
        stage.tell(f"{person.name}'s agent shows the request (the number is not in it):")
        stage.output(person.agent("pending", show=False))
        typed = _type_number(stage, number)
        person.agent("approve", "--number", typed, secrets={"--pin-fd": PIN})
        rest = output_of(process).read()
        stage.tell("The waiting client:")
        stage.output(rest)
        if process.wait(PATIENCE_SECONDS):
            raise RuntimeError("the client was not signed in")


def wrong_number(stage: Stage, person: Person) -> None:
    """Somebody approves with a number that is not the one shown."""
    with person.signing_in() as process:
        number = _read_number(stage, process)
        person.wait_for_prompt()
        wrong = f"{(int(number) + 1) % 100:02d}"
        stage.tell(f"The client shows {number}; {wrong} is typed, with the right PIN:")
        try:
            person.agent("approve", "--number", wrong, secrets={"--pin-fd": PIN})
        except RuntimeError as error:
            stage.output(str(error).partition("\n")[2])
        rest = output_of(process).read()
        stage.output(rest)
        if not process.wait(PATIENCE_SECONDS):
            raise RuntimeError("a wrong number opened a session")
    stage.good("Refused: one try per number, and the miss counts on the account.")


async def _forge(server: ServerProcess, stage: Stage, username: str, access_pass: str) -> None:
    """Two attacks by somebody who controls a registered device's connection, but not its key."""
    async with Connection(server.endpoint, ca_file=server.ca) as connection:
        device = await enrol_with_pass(connection, server.tenant, username, access_pass)
        who: dict[str, Any] = {"tenant": server.tenant, "username": username}
        async with PromptStream(device) as stream:
            stage.chapter("An attack: a recorded answer is sent again")
            async with SignIn(connection, **who, app_id="shop", app_name="Shop") as request:
                answer = device.approve(await stream.prompt(), request.number)
                _expect(stage, "first time ", await stream.send(answer), accepted=True)
                await request.session()
            _expect(stage, "second time", await stream.send(answer), accepted=False)
            async with SignIn(connection, **who, app_id="shop", app_name="Shop") as request:
                prompt = await stream.prompt()
                replay = prompts.Answer(
                    prompt_id=prompt.prompt_id, statement=answer.statement, assertion=answer.assertion
                )
                _expect(stage, "for another", await stream.send(replay), accepted=False)
                await _still_waiting(stage, device, stream, prompt, request)


async def _still_waiting(
    stage: Stage, device: BenchDevice, stream: PromptStream, prompt: prompts.Prompt, request: SignIn
) -> None:
    """The forged answers changed nothing: the same request is open, and a changed statement does not help either."""
    stage.chapter("An attack: the statement is changed after it was shown")
    parsed = SignInOffer.parse(prompt.offer)
    stage.tell(f"The person saw the app {parsed.app_name!r}; the statement that is signed says 'Payroll'.")
    tampered = prompt.offer.replace(b"\x64Shop", b"\x67Payroll")
    _expect(
        stage, "tampered   ", await stream.send(device.approve(prompt, request.number, offer=tampered)), accepted=False
    )
    honest = device.approve(prompt, request.number)
    broken = prompts.Answer()
    broken.CopyFrom(honest)
    broken.assertion.signature = honest.assertion.signature[:-1] + bytes([honest.assertion.signature[-1] ^ 1])
    _expect(stage, "bit flipped", await stream.send(broken), accepted=False)
    _expect(stage, "untouched  ", await stream.send(device.approve(prompt, request.number)), accepted=True)
    await request.session()


def _expect(stage: Stage, name: str, outcome: prompts.Outcome, *, accepted: bool) -> None:
    """Say what became of an answer, and stop the demo if that is not what a sound server does."""
    verdict = "accepted" if outcome.accepted else f"refused: {outcome.reason}"
    (stage.tell if outcome.accepted else stage.good)(f"{name}  {verdict}")
    if outcome.accepted is not accepted:
        raise RuntimeError(f"the server answered {outcome}")


def wrong_pin(stage: Stage, person: Person) -> None:
    """Somebody who has the device and sees the number, but does not know the PIN. The key itself counts."""
    key = {"tpm": "TPM", "fido2": "security key", "smartcard": "smartcard"}[person.provider]
    with person.signing_in() as process:
        number = _read_number(stage, process)
        person.wait_for_prompt()
        stage.tell(f"Whoever holds the device types {number}, and a PIN that is wrong. The {key} counts:")
        try:
            person.agent("approve", "--number", number, secrets={"--pin-fd": WRONG_PIN})
        except RuntimeError as error:
            stage.output(str(error).partition("\n")[2])
        person.agent("deny", show=False)
        process.wait(PATIENCE_SECONDS)
    limit = "it opens this key for nobody; other keys are not affected" if key == "TPM" else "it is blocked"
    stage.good(f"Refused by the {key} itself. At the limit {limit}.")


def people(stage: Stage, server: ServerProcess, keys: DemoKeys) -> tuple[Person, Person]:
    """The administrator and Ada, each with the keys that are theirs."""

    def person(number: int, name: str) -> Person:
        given, settings = keys.provider(number), keys.settings(number)
        return Person(stage, server, name, provider=given, settings=settings, environment=keys.environment)

    return person(0, server.administrator), person(1, "ada")


def tell(stage: Stage, keys: DemoKeys) -> None:
    """The whole story."""
    stage.chapter("A server is made: keys, store, first tenant, first administrator")
    with ServerProcess.make(stage.folder) as server, ExitStack() as stack:
        stage.command(["keyvouch-server", "init", "--data", str(server.data), "--tenant", server.tenant,
                       "--administrator", server.administrator])  # fmt: skip
        keys.trust(server.data)
        server.start()
        stage.command(["keyvouch-server", "serve", "--data", str(server.data), "&"])
        ports = f"port {server.public_port} for clients (TLS), {server.device_port} for devices (mutual TLS)"
        stage.tell(f"process {server.pid}: {ports}")
        admin, ada = people(stage, server, keys)

        stage.chapter("The administrator registers a device with the first access pass, and signs in with it")
        stage.tell(keys.told)
        if keys.command:
            stage.command([*keys.command, "&"])
        admin.enrol(server.administrator_pass)
        stack.enter_context(admin.running_agent())
        sign_in(stage, admin)

        stage.chapter("The administrator makes a user and issues a Temporary Access Pass")
        admin.client("admin", "user", "create", "ada")
        created = json.loads(admin.client("admin", "pass", "create", "ada", "--json", show=False))
        stage.command(["keyvouch", "admin", "pass", "create", "ada"])
        stage.tell(f"The code is shown once and stored only as a keyed hash: {created['code']}")

        stage.chapter("Ada registers her device with the pass")
        ada.enrol(created["code"])
        stack.enter_context(ada.running_agent())

        stage.chapter("Ada signs in: no password, a number and a PIN")
        sign_in(stage, ada)
        ada.client("whoami")
        stage.good("Signed in. Two factors in one step: the key of her device, and the PIN that unlocks it.")

        stage.chapter("An attack: a wrong number")
        wrong_number(stage, ada)
        if ada.provider != "software":
            stage.chapter("An attack: a guessed PIN")
            wrong_pin(stage, ada)
        attacks(stage, server, admin)
        LostPhone(stage, server, admin, ada, sign_in).tell(stack)

        stage.chapter("What the audit log says")
        audit = json.loads(admin.client("admin", "audit", "--limit", "12", "--json", show=False))
        stage.command(["keyvouch", "admin", "audit", "--limit", "12"])
        stage.tell("Number, action and outcome; the command also shows time, actor, subject and details:")
        stage.output("\n".join(f"{r['sequence']:<4}{r['action']:<23}{r['outcome']}" for r in audit["records"]))
        if keys.tcti:
            stage.chapter("The TPM is left as it was")
            ada.agent("unregister", "--yes")


def attacks(stage: Stage, server: ServerProcess, admin: Person) -> None:
    """Replay and tampering, with a scripted device that does what no agent would."""
    admin.client("admin", "user", "create", "mallory", show=False)
    created = json.loads(admin.client("admin", "pass", "create", "mallory", "--json", show=False))
    asyncio.run(_forge(server, stage, "mallory", created["code"]))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo; returns 0 when every step went as told."""
    parser = argparse.ArgumentParser(prog="./run demo", description="The main job, end to end, on this machine.")
    parser.add_argument("--unattended", action="store_true", help="type nothing: the demo types the number itself")
    parser.add_argument(
        "--provider",
        default="",
        choices=("tpm", "fido2", "smartcard", "software"),
        help="what holds the keys; else the best there is. fido2, smartcard: emulated, on a virtual card reader",
    )
    arguments = parser.parse_args(argv)
    interactive = sys.stdin.isatty() and sys.stdout.isatty() and not arguments.unattended
    with tempfile.TemporaryDirectory(prefix="keyvouch-demo-") as folder:
        stage = Stage(Path(folder), interactive=interactive, colour=sys.stdout.isatty())
        try:
            with chosen(arguments.provider, Path(folder)) as keys:
                tell(stage, keys)
        except (RuntimeError, KeyvouchError) as error:
            sys.stderr.write(f"\nThe demo stopped: {error}\n")
            return 1
        except (KeyboardInterrupt, EOFError):
            sys.stderr.write("\nThe demo was ended. Its programs are stopped, and nothing of it is left.\n")
            return 130
        stage.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main())

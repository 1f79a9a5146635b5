"""`./run demo`: the main job end to end with real processes, told step by step, and three attacks that fail.

A server, the administrator's agent, Ada's agent and the `keyvouch` client run apart from each other and talk over TLS
on the loopback. Everything lives in a temporary directory that is gone afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, TextIO

from keyvouch.errors import KeyvouchError
from keyvouch.statement import SignInOffer
from keyvouch.v1 import prompts_pb2 as prompts
from keyvouch_bench.demo_keys import DemoKeys, chosen
from keyvouch_bench.device import BenchDevice, PromptStream, enrol_with_pass
from keyvouch_bench.server_process import ServerProcess
from keyvouch_client import Connection, SignIn

PIN: Final = "493817"
WRONG_PIN: Final = "493818"
PATIENCE_SECONDS: Final = 30.0


class Stage:
    """Where the story is told: numbered headings, sentences, commands and what they print."""

    def __init__(self, folder: Path, *, interactive: bool, colour: bool) -> None:
        self.folder = folder
        self.interactive = interactive
        self._colour = colour
        self._chapter = 0
        self._start = time.monotonic()

    def chapter(self, title: str) -> None:
        """Begin the next step."""
        self._chapter += 1
        self._print(f"\n{self._paint('1;36', f'{self._chapter}. {title}')}")

    def tell(self, text: str) -> None:
        """A sentence of the story."""
        self._print(f"   {text}")

    def good(self, text: str) -> None:
        """A result."""
        self._print(f"   {self._paint('1;32', text)}")

    def command(self, arguments: Sequence[str]) -> None:
        """The command that is about to run, as a person would type it."""
        words = [(a if a == "&" else shlex.quote(a)).replace(str(self.folder), "$DEMO") for a in arguments]
        for line in _wrapped(words, shutil.get_terminal_size().columns - 4):
            self._print(f"   {self._paint('2', line)}")

    def output(self, text: str) -> None:
        """What a program printed."""
        for line in text.rstrip().splitlines():
            self._print(f"   | {line.replace(str(self.folder), '$DEMO')}")

    def finish(self) -> None:
        """The last line."""
        self._print(f"\nThe demo took {time.monotonic() - self._start:.0f} s. Nothing of it is left on this machine.")

    def _paint(self, code: str, text: str) -> str:
        return f"\033[{code}m{text}\033[0m" if self._colour else text

    @staticmethod
    def _print(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def _wrapped(words: Sequence[str], width: int) -> list[str]:
    """A command on lines of at most `width`, broken as a shell understands it; an option stays with its value."""
    parts: list[str] = []
    for word in words:
        if parts and parts[-1].startswith("--") and " " not in parts[-1] and not word.startswith(("-", "&")):
            parts[-1] += f" {word}"
        else:
            parts.append(word)
    lines = ["$"]
    for part in parts:
        if len(lines[-1]) + 1 + len(part) + 2 > width and lines[-1] != "$":
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {part}"
    return lines


class Person:
    """Somebody with a client and an agent, each with a home of its own."""

    def __init__(self, stage: Stage, server: ServerProcess, name: str, *, provider: str, settings: str) -> None:
        self.name = name
        self.provider = provider
        self._stage = stage
        self._server = server
        self._home = stage.folder / name
        if settings:
            (self._home / "agent").mkdir(mode=0o700, parents=True)
            (self._home / "agent" / "agent.toml").write_text(settings, "utf-8")
            (self._home / "agent" / "agent.toml").chmod(0o600)

    def agent(self, *arguments: str, secrets: dict[str, str] | None = None, show: bool = True) -> str:
        """Run `keyvouch-agent`; `secrets` go through descriptors, never through the command line."""
        words = ["keyvouch-agent", "--home", str(self._home / "agent"), *arguments]
        return self._run("keyvouch_agent", words, secrets or {}, show=show)

    def client(self, *arguments: str, show: bool = True) -> str:
        """Run `keyvouch` and wait for it."""
        return self._run("keyvouch_client", ["keyvouch", *arguments], {}, show=show)

    def _run(self, module: str, words: list[str], secrets: dict[str, str], *, show: bool) -> str:
        with ExitStack() as stack:
            descriptors = {option: stack.enter_context(_pipe(secret)) for option, secret in secrets.items()}
            extra = [word for option, number in descriptors.items() for word in (option, str(number))]
            if show:
                self._stage.command([*words, *extra])
            done = subprocess.run(  # noqa: S603 - our own programs
                [sys.executable, "-m", module, *words[1:], *extra],
                pass_fds=tuple(descriptors.values()), env=self._environment(), capture_output=True, text=True,
                timeout=PATIENCE_SECONDS, check=False,
            )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)} failed:\n{done.stdout}{done.stderr}")
        if show:
            self._stage.output(done.stdout)
        return done.stdout

    def _environment(self) -> dict[str, str]:
        return {**os.environ, "KEYVOUCH_HOME": str(self._home / "client"), "PYTHONUNBUFFERED": "1"}

    def enrol(self, access_pass: str) -> None:
        """Register this person's device with a pass; the PIN is new and stays on the device."""
        self.agent(
            "enroll", "--server", self._server.endpoint, "--ca", str(self._server.ca), "--tenant", self._server.tenant,
            "--user", self.name, "--name", f"Laptop of {self.name}", "--provider", self.provider,
            secrets={"--access-pass-fd": access_pass, "--pin-fd": PIN},
        )  # fmt: skip

    @contextmanager
    def running_agent(self) -> Iterator[None]:
        """The long-lived agent, in the background."""
        words = ["keyvouch-agent", "--home", str(self._home / "agent"), "run", "--quiet-prompts"]
        self._stage.command([*words, "&"])
        with (self._home / "agent.log").open("w") as log:
            process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, "-m", "keyvouch_agent", *words[1:]], stdout=log, stderr=log, env=self._environment()
            )
        try:
            self._until_connected()
            yield
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)

    def _until_connected(self) -> None:
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            try:
                if "connected" in self.agent("status", show=False):
                    return
            except RuntimeError:
                pass
            time.sleep(0.1)
        raise RuntimeError(f"the agent did not connect; see {self._home / 'agent.log'}")

    @contextmanager
    def signing_in(self) -> Iterator[subprocess.Popen[str]]:
        """`keyvouch sign-in` in a process of its own, waiting for the device."""
        words = [
            "sign-in", "--server", self._server.endpoint, "--ca", str(self._server.ca), "--tenant", self._server.tenant,
            "--user", self.name, "--app", "Time sheets", "--message", "Open your time sheet",
        ]  # fmt: skip
        self._stage.command(["keyvouch", *words])
        process = subprocess.Popen(  # noqa: S603 - our own program
            [sys.executable, "-m", "keyvouch_client", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, env=self._environment(),
        )  # fmt: skip
        try:
            yield process
        finally:
            process.terminate()
            process.wait(PATIENCE_SECONDS)
            _stream(process).close()

    def wait_for_prompt(self) -> dict[str, Any]:
        """The request as the agent has it, once it is there."""
        end = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < end:
            waiting: list[dict[str, Any]] = json.loads(self.agent("pending", "--json", show=False))["prompts"]
            if waiting:
                return waiting[0]
            time.sleep(0.1)
        raise RuntimeError("the request did not reach the agent")


@contextmanager
def _pipe(secret: str) -> Iterator[int]:
    """A descriptor from which `secret` can be read once."""
    reading, writing = os.pipe()
    os.write(writing, secret.encode())
    os.close(writing)
    try:
        yield reading
    finally:
        os.close(reading)


def _stream(process: subprocess.Popen[str]) -> TextIO:
    if process.stdout is None:
        raise RuntimeError("the process has no output to read")
    return process.stdout  # type: ignore[return-value] # IO[str] of a text process


def _read_number(stage: Stage, process: subprocess.Popen[str]) -> str:
    """The number the client shows, read as a person would: from the screen, until the client waits."""
    number = ""
    for line in _stream(process):
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
        rest = _stream(process).read()
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
        rest = _stream(process).read()
        stage.output(rest)
        if not process.wait(PATIENCE_SECONDS):
            raise RuntimeError("a wrong number opened a session")
    stage.good("Refused: one try per number, and the miss counts on the account.")


async def _forge(server: ServerProcess, stage: Stage, username: str, access_pass: str) -> None:
    """Two attacks by somebody who controls a registered device's connection, but not its key."""
    async with Connection(server.endpoint, ca_file=server.ca) as connection:
        device = await enrol_with_pass(connection, server.tenant, username, access_pass)
        who = {"tenant": server.tenant, "username": username}
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
    """Somebody who has the device and sees the number, but does not know the PIN."""
    with person.signing_in() as process:
        number = _read_number(stage, process)
        person.wait_for_prompt()
        stage.tell(f"Whoever holds the device types {number}, and a PIN that is wrong. The TPM counts:")
        try:
            person.agent("approve", "--number", number, secrets={"--pin-fd": WRONG_PIN})
        except RuntimeError as error:
            stage.output(str(error).partition("\n")[2])
        person.agent("deny", show=False)
        process.wait(PATIENCE_SECONDS)
    stage.good("Refused by the chip itself. At the limit it opens this key for nobody; other keys are not affected.")


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
        admin, ada = (
            Person(stage, server, name, provider=keys.provider(n), settings=keys.settings(n))
            for n, name in enumerate((server.administrator, "ada"))
        )

        stage.chapter("The administrator registers a device with the first access pass, and signs in with it")
        stage.tell(keys.told)
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
        if ada.provider == "tpm":
            stage.chapter("An attack: a guessed PIN")
            wrong_pin(stage, ada)
        attacks(stage, server, admin)

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
        "--provider", default="", choices=("tpm", "software"), help="what holds the keys; else the best there is"
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

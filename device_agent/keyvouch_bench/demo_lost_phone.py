"""The lost phone: what `./run demo` tells after the sign-ins and the attacks.

Ada has a second device by then, her phone. It is lost; somebody begins a sign-in in her name; she reports it; the
administrator sees that and gives her a pass; with her new phone the old one goes, and with it all that it had signed
in. In the end a receipt and the audit log are verified by programs that ask no server.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack

from keyvouch_bench.demo_people import PATIENCE_SECONDS, PIN, Person, Stage
from keyvouch_bench.server_process import ServerProcess
from keyvouch_client import Connection, SignIn

__all__ = ["LostPhone"]

SignInAt = Callable[[Stage, Person], None]
"""One sign-in of a person, approved with the device that is given."""


class LostPhone:
    """The chapters of the story, in their order."""

    def __init__(self, stage: Stage, server: ServerProcess, admin: Person, ada: Person, sign_in: SignInAt) -> None:
        self._stage = stage
        self._server = server
        self._admin = admin
        self._ada = ada
        self._sign_in = sign_in

    def tell(self, stack: ExitStack) -> None:
        """All of it; the agents that are started go with `stack`."""
        phone = self._second_device(stack)
        self._reported()
        code = self._new_pass()
        new = self._new_phone(code, stack)
        self._gone(phone, new)
        self._receipt()
        self._log()

    def _second_device(self, stack: ExitStack) -> Person:
        self._stage.chapter("Ada registers a second device, her phone, from her own session: no pass is needed")
        phone = self._ada.with_device("phone")
        phone.agent(
            "enroll", "--with-session", "--name", "Phone of ada", "--provider", "software", "--keep-all",
            secrets={"--pin-fd": PIN},
        )  # fmt: skip
        stack.enter_context(phone.running_agent())
        self._stage.tell("She signs in with the phone; this session depends on it.")
        self._sign_in(self._stage, phone)
        return phone

    def _reported(self) -> None:
        self._stage.chapter('The phone is lost. Somebody begins a sign-in in her name: "this was not me"')
        asyncio.run(self._stranger())
        self._stage.good(
            "Refused, and more: her account is flagged, that client is shut out, the administrators are told:"
        )
        self._risks()

    def _risks(self) -> list[str]:
        """What the administrator has not looked at yet; returns the ids."""
        told = json.loads(self._admin.client("admin", "risk", "list", "--open", "--json", show=False))
        self._stage.command(["keyvouch", "admin", "risk", "list", "--open"])
        events: list[dict[str, str]] = told["events"]
        self._stage.output("\n".join(f"{event['kind']:<12} {event['message']}" for event in events))
        return [event["risk_event_id"] for event in events]

    async def _stranger(self) -> None:
        """Somebody else's client asks to sign in as Ada; she looks at the device she has left."""
        connection = Connection(self._server.endpoint, ca_file=self._server.ca)
        async with (
            connection,
            SignIn(connection, tenant=self._server.tenant, username=self._ada.name, app_id="mail", app_name="Mail"),
        ):
            await asyncio.to_thread(self._ada.wait_for_prompt)
            await asyncio.to_thread(self._ada.agent, "report")

    def _new_pass(self) -> str:
        self._stage.chapter("The administrator gives her a new pass, and says what becomes of her sessions")
        words = ("admin", "pass", "replace", self._ada.name, "--keep-sessions")
        made = json.loads(self._admin.client(*words, "--json", show=False))
        self._stage.command(["keyvouch", *words])
        self._stage.tell(f"The code is shown once: {made['code']}")
        code: str = made["code"]
        return code

    def _new_phone(self, code: str, stack: ExitStack) -> Person:
        self._stage.chapter("Ada registers her new phone with the pass, and is asked: lost or replaced?")
        new = self._ada.with_device("new-phone")
        listed = json.loads(self._ada.client("security-info", "--json", show=False))
        names = [device["display_name"] for device in listed["devices"]]
        number = str(1 + names.index("Phone of ada"))
        self._stage.tell("At a terminal; the demo types for her. PIN and pass are not echoed.")
        screen = new.at_terminal(
            ["enroll", "--server", self._server.endpoint, "--ca", str(self._server.ca), "--tenant", self._server.tenant,
             "--user", self._ada.name, "--name", "New phone of ada", "--provider", "software"],
            [("Temporary Access Pass: ", code), ("New PIN: ", PIN), ("New PIN again: ", PIN),
             ("Its number, or Enter for none: ", number), ("[l/r]: ", "l"), ("Another one?", "")],
        )  # fmt: skip
        self._stage.output(screen)
        stack.enter_context(new.running_agent())
        return new

    def _gone(self, phone: Person, new: Person) -> None:
        self._stage.chapter("The old phone is gone, with every session that it had approved")
        self._fails("whoami")
        self._stage.good("The session of the lost phone is over, wherever it was used. The phone itself:")
        phone.agent("status")
        self._stage.tell("She signs in anew, with the new phone:")
        self._sign_in(self._stage, new)
        for event in self._risks():
            self._admin.client("admin", "risk", "close", event)
        self._ada.client("security-info")

    def _fails(self, *arguments: str) -> None:
        """A command of Ada's that has to be refused."""
        try:
            self._ada.client(*arguments)
        except RuntimeError as error:
            self._stage.output(str(error).partition("\n")[2])
        else:
            raise RuntimeError(f"`keyvouch {' '.join(arguments)}` was not refused")

    def _receipt(self) -> None:
        self._stage.chapter("The receipt of that sign-in is verified by a program that asks no server")
        receipt = self._stage.folder / "receipt.cbor"
        self._ada.client("security-info", "receipt", "--out", str(receipt))
        words = ("verify", str(receipt), "--ca", str(self._server.ca), "--explain")
        self._stage.command(["keyvouch", *words])
        found = json.loads(self._ada.client(*words, show=False))
        self._stage.tell(f"It says {found['decision']}, with all facts as JSON, among them what the receipt proves:")
        self._stage.output("\n".join(found["facts"]["proves"]))

    def _log(self) -> None:
        self._stage.chapter("The audit log is verified, record by record")
        words = ["audit", "verify", "--data", str(self._server.data)]
        self._stage.command(["keyvouch-server", *words])
        done = subprocess.run(  # noqa: S603 - our own program
            [sys.executable, "-m", "keyvouch_server", *words],
            capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"the audit log does not verify:\n{done.stdout}{done.stderr}")
        self._stage.output(re.sub(r"\n{2,}", "\n", done.stdout))

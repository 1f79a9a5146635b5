"""A preview against what then comes to pass: random policies over people with random keys, on a real server.

What a preview tells, laid over what was found before, has to be what is found after the change was saved: each person
signs in by each way, to an app with a rule and to one without, with a pass, and to somebody else's app for campaigns.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from keyvouch.errors import Reason, RefusedError, UnauthenticatedError
from keyvouch.statement import Decision, DecisionStatement, Purpose, challenge
from keyvouch.v1 import administration_pb2 as pb
from keyvouch.v1 import common_pb2, policies_pb2
from keyvouch_bench.device import BenchDevice
from keyvouch_server.domain.model import Device, Prompt, User, UserKind
from keyvouch_server.trust_anchors import read_settings
from keyvouch_server.use_cases.judgement import Answer, Assertion
from support.attestation_forge import ROOT
from support.key_desk import MODEL_NAME, OTHER_MODEL, OTHER_NAME, another_key, begin_with_key
from support.live_server import ADMINISTRATOR, LiveServer, live_server
from support.policy_desk import GATED, HARDWARE, call, group_of, present, preview_all
from support.strangers import user_of

APPROVAL, KEY, PASS = "approval", "security_key", "access_pass"
ELSEWHERE = "https://elsewhere.test"
BANK = "bank"

SELF = common_pb2.AssuranceRequirement()
SELF.CopyFrom(GATED)
SELF.provenance = common_pb2.PROVENANCE_SELF
ANCHORED = common_pb2.AssuranceRequirement()
ANCHORED.CopyFrom(GATED)
ANCHORED.anchors.append("Forged Keys")
REQUIREMENTS = (GATED, GATED, SELF, HARDWARE, ANCHORED)

Use = tuple[str, str, str]
"""A person, a method, and an app."""


@dataclass(slots=True)
class Town:
    """People, with what they have."""

    live: LiveServer
    dice: random.Random
    devices: dict[str, list[BenchDevice]] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)
    users: dict[str, str] = field(default_factory=dict)
    groups: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Found:
    """What is so: which method is usable for what, which keys count, and whose campaigns are overdue."""

    methods: dict[Use, bool]
    keys: dict[bytes, bool]
    shut_out: dict[str, bool]
    lets_in: bool
    """Whether the administrator who changes the policy can sign in again."""


@pytest.fixture
async def trusting(server_template: Path, tmp_path: Path) -> AsyncIterator[LiveServer]:
    """A server in memory that believes the root of the forge."""
    (tmp_path / "root.pem").write_bytes(ROOT.certificate.public_bytes(Encoding.PEM))
    pinned = {"name": "Forged Keys", "file": "root.pem", "formats": ["packed"]}
    pinned |= {"protection": "secure_element", "verification": "hardware_gated"}
    trust = read_settings([pinned], None, folder=tmp_path)
    async with live_server(server_template, tmp_path, trust=trust, memory=True) as running:
        yield running


async def settled_town(live: LiveServer, dice: random.Random) -> Town:
    town = Town(live, dice)
    await live.change_policy(approval={"begins_per_minute": 6000})
    for name in ("ada", "bob", "cyd", "dan", "eve", "gus"):
        await live.create_user(name)
        await live.issue_pass(name)
    town.devices = {name: [] for name in ("bob", "dan")}
    for name in ("ada", "cyd", "gus"):
        town.devices[name] = [await live.enrol(name, await live.issue_pass_again(name))]
    for name, how in (("bob", {}), ("cyd", {"authority": ROOT}), ("eve", {"authority": ROOT, "model": OTHER_MODEL})):
        town.devices.setdefault(name, []).append(await another_key(live, name, **how))  # type: ignore[arg-type]
    for name in town.devices:
        town.codes[name] = await live.issue_pass_again(name, lifetime_minutes=1440)
        town.users[name] = (await user_of(live, name)).id
    gus = town.users["gus"]
    await live.app.store.write(lambda tx: tx.update(User, {"id": gus}, {"kind": UserKind.GUEST}))
    for group, members in (("lab", ("ada", "dan", "gus")), ("staff", ("ada", "cyd", "eve"))):
        town.groups.append(await group_of(live, group, *(town.users[name] for name in members)))
    return town


# what is so


async def find_out(town: Town) -> Found:
    methods: dict[Use, bool] = {}
    keys: dict[bytes, bool] = {}
    shut_out: dict[str, bool] = {}
    for name, devices in town.devices.items():
        counting: set[bytes] = set()
        for app in ("", BANK):
            asked = await by_number(town, name, app or "other")
            methods[name, APPROVAL, app] = bool(asked)
            offered = await by_key(town, name, app or "other")
            methods[name, KEY, app] = bool(offered)
            counting |= set() if app else asked | offered
        methods[name, PASS, ""] = await by_pass(town, name)
        keys |= {d.credential.credential_id: d.credential.credential_id in counting for d in devices}
        if methods[name, APPROVAL, ""]:
            shut_out[name] = await is_shut_out(town, name)
    way_in = await by_number(town, ADMINISTRATOR, "keyvouch-cli")
    return Found(methods, keys, shut_out, bool(way_in))


async def by_number(town: Town, name: str, app: str) -> set[bytes]:
    """The keys that are asked; one of them approves, and there has to be a session."""
    live = town.live
    try:
        opened = await live.begin(name, app_id=app)
    except RefusedError:
        return set()
    sign_in = opened.begun.sign_in_id
    prompts = await live.app.store.read(lambda tx: tx.find(Prompt, {"sign_in_id": sign_in}))
    if prompts:
        prompt = town.dice.choice(prompts)
        own = town.devices.get(name) or [live.people[name].device]
        bench = next(d for d in own if d.credential.credential_id == prompt.credential_id)
        device = await live.app.store.read(lambda tx: tx.get(Device, id=bench.device_id))
        assert device is not None
        answered = await live.app.decisions.answer(device, approval(bench, prompt, opened.number))
        assert answered.refusal is None
        assert (await opened.redeem()).session.username == name
    return {prompt.credential_id for prompt in prompts}


def approval(bench: BenchDevice, prompt: Prompt, number: str) -> Answer:
    statement = DecisionStatement(prompt.offer, Decision.APPROVE, number).encode()
    made = bench.credential.assertion(challenge(Purpose.SIGN_IN, statement))
    evidence = (made.credential_id, made.client_data_json, made.authenticator_data, made.signature, made.user_handle)
    return Answer(prompt.id, statement, Assertion(*evidence))


async def by_key(town: Town, name: str, app: str) -> set[bytes]:
    try:
        opened = await begin_with_key(town.live, name, app_id=app)
    except RefusedError:
        return set()
    own = [d for d in town.devices[name] if d.credential.credential_id in opened.offers]
    if own:
        await opened.complete(opened.approval(town.dice.choice(own).credential))
        assert (await opened.redeem()).session.username == name
    return {d.credential.credential_id for d in own}


async def by_pass(town: Town, name: str) -> bool:
    try:
        await town.live.access_pass_sign_in(name, town.codes[name])
    except UnauthenticatedError:
        return False
    return True


async def is_shut_out(town: Town, name: str) -> bool:
    reason = None
    try:
        await town.live.begin(name, app_id="other", audience=ELSEWHERE)
    except RefusedError as refusal:
        reason = refusal.reason
    assert reason in (None, Reason.METHOD_REQUIRED)
    return reason is not None


# what is changed


def another_policy(town: Town, policy: pb.Policy) -> None:
    """Some settings otherwise; some stay, so that changes add up."""
    dice = town.dice
    for part in (policy.approval, policy.security_key, policy.access_pass):
        if dice.random() < 0.4:
            part.enabled = dice.random() < 0.75
        if dice.random() < 0.5:
            part.targets.CopyFrom(some_targets(town))
    for part in (policy.approval, policy.security_key):
        if dice.random() < 0.4:
            part.required_assurance.CopyFrom(dice.choice(REQUIREMENTS))
    if dice.random() < 0.4:
        rules = policy.registration.authenticators
        rules.allowed[:], rules.blocked[:] = dice.choice([([], []), ([MODEL_NAME], []), ([], [MODEL_NAME]),
                                                          ([OTHER_NAME], [MODEL_NAME])])  # fmt: skip
    if dice.random() < 0.5:
        del policy.apps[:]
        if dice.random() < 0.7:
            policy.apps.add(
                app_id=BANK, required_assurance=dice.choice(REQUIREMENTS), phishing_resistant=dice.random() < 0.4
            )
    if dice.random() < 0.5:
        del policy.campaigns[:]
        for name in dice.sample(["one", "two"], dice.randrange(3)):
            by = town.live.clock.now() + dice.choice([-10, 0, 1000])
            required = dice.choice(REQUIREMENTS)
            policy.campaigns.add(name=name, required_by=by, targets=some_targets(town), required_assurance=required)
    policy.access_pass.one_time_required = dice.random() < 0.2


def some_targets(town: Town) -> pb.Targets:
    dice, people = town.dice, list(town.users.values())

    def some(of: list[str]) -> list[str]:
        return dice.sample(of, dice.choice([0, 0, 1, 2]))

    return pb.Targets(
        everybody=dice.random() < 0.6,
        include_users=some(people),
        include_groups=some(town.groups),
        exclude_users=some(people),
        exclude_groups=dice.choice([[], some(town.groups)]),
    )


async def changed(town: Town) -> policies_pb2.PreviewPolicyResponse:
    """Preview a random change, or the way back, in small pages; then save it."""
    live, policy = town.live, await present(town.live)
    page = common_pb2.PageRequest(size=town.dice.choice([1, 3, 200]))
    if policy.version > 2 and town.dice.random() < 0.25:
        version = town.dice.randrange(2, policy.version)
        told = await preview_all(live, policies_pb2.PreviewPolicyRequest(roll_back_to=version, page=page))
        back: Any = policies_pb2.RollBackPolicyRequest(version=version, present_version=policy.version)
        back.accept_lock_out = True
        await call(live, "RollBackPolicy", back)
        return told
    another_policy(town, policy)
    told = await preview_all(live, policies_pb2.PreviewPolicyRequest(policy=policy, page=page))
    await live.administer("UpdatePolicy", pb.UpdatePolicyRequest(policy=policy, accept_lock_out=True))
    return told


def held_against(
    told: policies_pb2.PreviewPolicyResponse, old: Found, new: Found, campaigns: dict[tuple[str, str], int]
) -> None:
    """What is told is what came to pass, and nothing else came to pass. `campaigns` is brought up to date."""
    entries: dict[Use, tuple[bool, bool]] = {}
    keys: dict[bytes, tuple[bool, bool]] = {}
    for user in told.users:
        for m in user.methods:
            method = common_pb2.SignInMethod.Name(m.method).removeprefix("SIGN_IN_METHOD_").lower()
            entries[user.username, method, m.app_id] = (m.usable_before, m.usable_after)
            assert m.usable_before != m.usable_after
            assert m.reason
        keys |= {key.credential_id: (key.accepted_before, key.accepted_after) for key in user.credentials}
        for c in user.campaigns:
            assert campaigns.get((user.username, c.name), 0) == c.required_by_before
            campaigns[user.username, c.name] = c.required_by_after
    for use, before in old.methods.items():
        name, method, _ = use
        as_such = entries.get((name, method, ""), (before, before))
        foretold = entries.get(use, (before, before if as_such != (True, False) else False))
        assert foretold == (before, new.methods[use]) or unsaid(use, before, as_such, new), (use, foretold, as_such)
    for key, before in old.keys.items():
        assert keys.get(key, (before, before)) == (before, new.keys[key])


def unsaid(use: Use, before: bool, as_such: tuple[bool, bool], new: Found) -> bool:
    """A method that is usable now is so for every app whose rule does not ask for more: that one is told of by itself
    where it changes otherwise.
    """
    return bool(use[2]) and as_such == (False, True) and not before and new.methods[use]


@pytest.mark.parametrize("seed", range(3))
async def test_what_a_preview_tells_is_what_comes_to_pass_PS13_KI2(trusting: LiveServer, seed: int) -> None:
    town = await settled_town(trusting, random.Random(seed))
    old, campaigns = await find_out(town), dict[tuple[str, str], int]()
    moved = 0
    for _ in range(10):
        told = await changed(town)
        new = await find_out(town)
        held_against(told, old, new, campaigns)
        now = trusting.clock.now()
        for name, is_out in new.shut_out.items():
            overdue = any(0 < by <= now for (whose, _), by in campaigns.items() if whose == name)
            assert is_out is overdue, (name, campaigns)
        assert bool(told.locks_out) is (old.lets_in and not new.lets_in)
        moved += sum(old.methods[use] is not new.methods[use] for use in old.methods)
        old = new
    assert moved > 20

"""A small pure model of one tenant: what each call has to come to, in the words of the product rules.

It knows nothing of the server's code. Every act is a method that changes the model and returns the outcome that the
server has to give: OK, or the reason of the refusal. Times are whole seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field

OK = "ok"
PASS_SECONDS = 3600
SIGN_IN_SECONDS = 120
SESSION_SECONDS = 12 * 3600
TOKEN_SECONDS = 600
ONE_TIME_SECONDS = 600
REST_SECONDS = 900
WRONG_CODES = 5
REFILL_SECONDS = 60

ROLES = ("user", "global_reader", "authentication_administrator")


@dataclass(slots=True)
class Settings:
    """The part of the policy that changes here."""

    approval: bool = True
    access_pass: bool = True
    excluded: bool = False
    """The group is excluded from approvals and passes."""
    one_time: bool = False
    """Every pass is for one use."""
    begins: int = 6
    misses: int = 3
    devices: int = 2


@dataclass(slots=True)
class Pass:
    """An access pass. `ends` is the instant it ends."""

    ends: int
    one_time: bool
    wrong: int = 0
    used: bool = False


@dataclass(slots=True)
class Session:
    """A session; `source` is the device that approved it, or the pass that opened it. `token_ends`: of its token."""

    user: Person
    ends: int
    token_ends: int
    source: object
    by_pass: bool
    revoked: bool = False
    generation: int = 1


@dataclass(slots=True)
class SignIn:
    """A sign-in request of `whose`: a user in one life, or a name that nobody has. `asked` have its prompt."""

    whose: str
    user: Person | None
    ends: int
    asked: list[object]
    since: int = 0
    """The policy under which it was begun."""
    state: str = "pending"
    device: object | None = None
    decided: tuple[object, str] | None = None
    """By which device, and how."""
    session: Session | None = None


@dataclass(slots=True)
class Person:
    """A user."""

    name: str
    guest: bool
    role: str = "user"
    gone: bool = False
    in_group: bool = False
    access_pass: Pass | None = None
    devices: list[object] = field(default_factory=list)
    sessions: list[Session] = field(default_factory=list)
    misses: int = 0
    rests_until: int = 0


class Tenant:
    """The state of everything, and the acts."""

    def __init__(self, now: int) -> None:
        self.now = now
        self.settings = Settings()
        self.versions = [Settings()]
        self.people: dict[str, Person] = {}
        self.requests: list[SignIn] = []
        self.budgets: dict[str, int] = {}
        """Arrival time by name and life of the user, in seconds."""

    # -- what holds at all times ---------------------------------------------------------------------

    def lives(self, session: Session) -> str:
        """What a session's holder is told."""
        if session.revoked or session.user.gone:
            return "session_revoked"
        return "session_expired" if session.ends <= self.now else OK

    def token(self, session: Session) -> str:
        """What somebody is told who shows the session's access token."""
        return "token_expired" if session.token_ends <= self.now else self.lives(session)

    def open_requests(self, whose: str) -> list[SignIn]:
        """Requests that can still change."""
        return [one for one in self.requests if one.state in ("pending", "approved") and one.whose == whose]

    def usable(self, person: Person) -> bool:
        """Whether the person's pass opens a session now (T7)."""
        found, rules = person.access_pass, self.settings
        if found is None or not rules.access_pass or person.guest or (rules.excluded and person.in_group):
            return False
        spent = found.wrong >= WRONG_CODES or (found.one_time and found.used)
        return not spent and self.now < found.ends and not (rules.one_time and not found.one_time)

    # -- the directory -------------------------------------------------------------------------------

    def create(self, name: str, *, guest: bool) -> str:
        """Make a user."""
        if name in self.people:
            return "user_exists"
        self.people[name] = Person(name, guest)
        return OK

    def delete(self, name: str) -> str:
        """Remove a user with all they have."""
        person = self.people.pop(name, None)
        if person is None:
            return "user_unknown"
        self.requests = [one for one in self.requests if one.user is not person]
        person.gone = True
        return OK

    def change_role(self, name: str, role: str) -> str:
        """Another role ends all sessions: privileges come with a new token."""
        person = self.people.get(name)
        if person is None:
            return "user_unknown"
        if person.role != role:
            self._end_all(person)
        if (person.role, role) == ("user", "global_reader"):
            person.access_pass = None  # P16: who made it may not make one for the new role
        person.role = role
        return OK

    def put_into_group(self, name: str, *, inside: bool) -> str:
        """Join or leave the group."""
        person = self.people.get(name)
        if person is None:
            return "user_unknown"
        person.in_group = inside
        return OK

    # -- policy --------------------------------------------------------------------------------------

    def change(self, settings: Settings) -> str:
        """Save a policy."""
        self.settings = settings
        self.versions.append(settings)
        return OK

    def roll_back(self, number: int) -> str:
        """The rules of an old version, as a new one."""
        return self.change(self.versions[number])

    def pass_time(self, seconds: int) -> None:
        """Time goes by; what ran out of it ends."""
        self.now += seconds
        for request in self.requests:
            if request.state in ("pending", "approved") and request.ends <= self.now:
                request.state = "expired"

    # -- passes --------------------------------------------------------------------------------------

    def create_pass(self, name: str, *, one_time: bool) -> str:
        """T12: a usable pass must be deleted first; any other is overwritten, and what it opened ends."""
        person = self.people.get(name)
        if person is None:
            return "user_unknown"
        if self.usable(person):
            return "access_pass_exists"
        self._renew_pass(person, one_time)
        return OK

    def replace_pass(self, name: str, *, one_time: bool, keep: bool) -> str:
        """A new pass in the place of the old one; what becomes of the sessions is said."""
        person = self.people.get(name)
        if person is None:
            return "user_unknown"
        if person.access_pass is None:
            return "access_pass_none"
        if not keep:
            self._end_all(person)
        self._renew_pass(person, one_time)
        return OK

    def _renew_pass(self, person: Person, one_time: bool) -> None:
        self._end([s for s in person.sessions if person.access_pass is not None and s.source is person.access_pass])
        person.access_pass = Pass(self.now + PASS_SECONDS, one_time or self.settings.one_time)

    def delete_pass(self, name: str) -> str:
        """T12: deleting a usable pass ends all sessions; any other those it opened."""
        person = self.people.get(name)
        if person is None:
            return "user_unknown"
        gone = person.access_pass
        if gone is None:
            return "access_pass_none"
        usable = self.usable(person)
        if usable:
            self._end_all(person)
        self._end([s for s in person.sessions if s.source is gone])
        person.access_pass = None
        return OK

    def use_pass(self, name: str, *, right: bool) -> tuple[str, Session | None]:
        """T8, T17: all refusals look alike. Wrong codes count, five in all (P9)."""
        person = self.people.get(name)
        found = person.access_pass if person else None
        if person is None or found is None:
            return "access_pass_refused", None
        if not right:
            found.wrong = min(found.wrong + 1, WRONG_CODES)
            return "access_pass_refused", None
        if not self.usable(person):
            return "access_pass_refused", None
        found.used = True
        ends = min(found.ends, self.now + ONE_TIME_SECONDS) if found.one_time else found.ends
        session = Session(person, ends, ends, found, by_pass=True)
        person.sessions.append(session)
        return OK, session

    # -- devices -------------------------------------------------------------------------------------

    def register(self, session: Session) -> str:
        """PS14, PS15: from a session that lives, where approvals are for the person, and there is room. T2: the session
        of a pass, where such a pass is still for the person.
        """
        told = self.token(session)
        if told != OK:
            return told
        person = session.user
        rules, opened_by = self.settings, session.source
        if not rules.approval:
            return "method_disabled"
        if not self.allows(person):
            return "method_not_targeted"
        if isinstance(opened_by, Pass) and not rules.access_pass:
            return "method_disabled"
        if isinstance(opened_by, Pass) and person.guest:
            return "access_pass_guest"
        if isinstance(opened_by, Pass) and rules.one_time and not opened_by.one_time:
            return "access_pass_one_time_required"
        return "device_limit" if len(person.devices) >= self.settings.devices else OK

    def registered(self, session: Session, device: object) -> None:
        """The device has come; a session of a one-time pass ends with that (P8)."""
        session.user.devices.append(device)
        found = session.source
        if isinstance(found, Pass) and found.one_time:
            self._end([session])

    def remove(self, person: Person, device: object) -> str:
        """PS18: the device goes with its sessions and unused approvals."""
        if device not in person.devices:
            return "device_unknown"
        person.devices.remove(device)
        self._end([s for s in person.sessions if s.source is device])
        for request in self.requests:
            if request.state == "approved" and request.device is device:
                request.state = "cancelled"
        return OK

    # -- signing in ----------------------------------------------------------------------------------

    def allows(self, person: Person, rules: Settings | None = None) -> bool:
        """PS12, PS15: whether policy lets this person approve, the present one or another."""
        rules = rules or self.settings
        return rules.approval and not (rules.excluded and person.in_group)

    def begin(self, name: str) -> tuple[str, SignIn | None]:
        """P1, KI1, KI4: the budget, then policy; the newer request ends the older one.

        A name that nobody has is like somebody without a device, and like somebody whom policy leaves out (P12).
        """
        person = self.people.get(name)
        if not self._admitted(name, person):
            return "throttled", None
        if person is not None and person.rests_until > self.now:
            return "throttled", None
        if not self.settings.approval:
            return "method_disabled", None
        whose = _life(name, person)
        for older in self.open_requests(whose):
            older.state = "superseded"
        asked = list(person.devices) if person and self.allows(person) else []
        request = SignIn(whose, person, self.now + SIGN_IN_SECONDS, asked, since=len(self.versions) - 1)
        self.requests.append(request)
        return OK, request

    def _admitted(self, name: str, person: Person | None) -> bool:
        key = _life(name, person)
        arrival = max(self.budgets.get(key, self.now), self.now)
        if arrival + REFILL_SECONDS - self.now > self.settings.begins * REFILL_SECONDS:
            return False
        self.budgets[key] = arrival + REFILL_SECONDS
        return True

    def answer(self, request: SignIn, device: object, decision: str) -> str:
        """A signed answer of a device that has the prompt: `approve`, `deny`, `report` or `wrong` (number)."""
        if request.user is None or request.user.gone or device not in request.asked:
            return "sign_in_unknown"
        if request.state != "pending":
            return "challenge_consumed" if request.decided == (device, decision) else _LATE[request.state]
        person = request.user
        request.device, request.decided = device, (device, decision)
        request.state = {"approve": "approved", "deny": "denied", "report": "reported", "wrong": "failed"}[decision]
        if decision == "approve":
            person.misses = 0
            self.budgets.pop(_life(person.name, person), None)
        if decision == "wrong":
            self._miss(person)
            return "number_mismatch"
        return OK

    def _miss(self, person: Person) -> None:
        person.misses += 1
        if person.misses >= self.settings.misses:
            person.misses, person.rests_until = 0, self.now + REST_SECONDS

    def redeem(self, request: SignIn) -> tuple[str, Session | None]:
        """P7, KI1, P19: once, and policy is asked again; a copy gets the same session while the request lasts."""
        if request.user is None:
            return _NO_SESSION[request.state], None
        if request.user.gone:
            return "sign_in_unknown", None
        if request.state == "consumed":
            session = request.session
            fresh = session is not None and not session.revoked and session.generation == 1
            return (OK, session) if fresh and self.now < request.ends else ("challenge_consumed", None)
        if request.state == "approved" and not self.allows(request.user):
            return "method_not_targeted" if self.settings.approval else "method_disabled", None
        if request.state != "approved":
            return _NO_SESSION[request.state], None
        if not all(self.allows(request.user, rules) for rules in self.versions[request.since :]):
            return "policy_changed", None
        request.state = "consumed"
        ends = self.now + SESSION_SECONDS
        session = Session(request.user, ends, self.now + TOKEN_SECONDS, request.device, by_pass=False)
        request.session = session
        request.user.sessions.append(session)
        return OK, session

    def cancel(self, request: SignIn) -> str:
        """The client withdraws; what has ended stays as it is."""
        if request.user is not None and request.user.gone:
            return "sign_in_unknown"
        if request.state in ("pending", "approved"):
            request.state = "cancelled"
        return OK

    # -- sessions ------------------------------------------------------------------------------------

    def refresh(self, session: Session, generation: int) -> str:
        """The present token rotates; the one before gives the present one again; an older one ends the session."""
        lives = self.lives(session)
        if session.user.gone:
            return "credentials_invalid"
        if lives != OK:
            return lives
        if generation in (session.generation, session.generation - 1):
            session.generation += generation == session.generation
            session.token_ends = min(self.now + TOKEN_SECONDS, session.ends)
            return OK
        session.revoked = True
        return "session_revoked"

    def revoke(self, session: Session) -> str:
        """Its holder signs out."""
        told = self.token(session)
        if told == OK:
            session.revoked = True
        return told

    def _end_all(self, person: Person) -> None:
        """With what was approved for more."""
        self._end(person.sessions)
        for request in self.requests:
            if request.user is person and request.state == "approved":
                request.state = "cancelled"

    def _end(self, sessions: list[Session]) -> None:
        for session in sessions:
            session.revoked = True


_LATE = {
    "approved": "challenge_consumed",
    "consumed": "challenge_consumed",
    "denied": "sign_in_denied",
    "reported": "sign_in_reported",
    "failed": "number_mismatch",
    "expired": "sign_in_expired",
    "superseded": "sign_in_superseded",
    "cancelled": "sign_in_cancelled",
}
_NO_SESSION = {**_LATE, "pending": "sign_in_pending"}


def _life(name: str, person: Person | None) -> str:
    """A budget belongs to a user, or to a name that nobody has."""
    return f"{name}/{id(person)}" if person else name

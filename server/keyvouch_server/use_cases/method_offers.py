"""Which methods a client is told of, and in which order (PS6, T9, P12).

A client that the user has signed in at before is told what suits the user: a usable access pass first, then the
method the user has set, then the one used last. Anybody else is told what the tenant's policy allows, whoever is
named: the way that was asked for first, the rest in one fixed order. A tenant may disclose preferences to all.
"""

from __future__ import annotations

from typing import Final

from keyvouch.errors import KeyvouchError
from keyvouch_server.domain.access_pass import access_pass_refusal
from keyvouch_server.domain.evaluation import Subject, decide_method, method_of
from keyvouch_server.domain.model import AccessPass, SignInMethod, SignInWay
from keyvouch_server.domain.policy import Policy
from keyvouch_server.domain.verdicts import Verdicts
from keyvouch_server.ports import Snapshot
from keyvouch_server.use_cases.offering import Named

ORDER: Final = (SignInMethod.APPROVAL, SignInMethod.SECURITY_KEY, SignInMethod.ACCESS_PASS)
"""Of methods that nothing else tells apart."""


async def methods_for(
    tx: Snapshot, named: Named, subject: Subject, way: SignInWay, *, known_client: bool, now: int
) -> tuple[SignInMethod, ...]:
    """The methods to tell of, the preferred one first."""
    policy, user = named.policy, named.user
    if user is None or not (known_client or policy.sign_in.disclose_methods):
        return _ordered([method for method in ORDER if _is_enabled(policy, method)], [method_of(way)])
    allowed = [method for method in ORDER if _is_allowed(policy, method, subject)]
    preferred = [m for m in ORDER if m.value == user.default_method] + [m for m in ORDER if m.value == user.last_method]
    if SignInMethod.ACCESS_PASS in allowed:
        found = await tx.get(AccessPass, user_id=user.id)
        if found is not None and access_pass_refusal(policy, found, subject, now=now) is None:
            preferred.insert(0, SignInMethod.ACCESS_PASS)
    return _ordered(allowed, preferred)


def _ordered(methods: list[SignInMethod], preferred: list[SignInMethod]) -> tuple[SignInMethod, ...]:
    first = [method for method in dict.fromkeys(preferred) if method in methods]
    return (*first, *(method for method in methods if method not in first))


def _is_enabled(policy: Policy, method: SignInMethod) -> bool:
    enabled = {
        SignInMethod.APPROVAL: policy.approval.enabled,
        SignInMethod.SECURITY_KEY: policy.security_key.enabled,
        SignInMethod.ACCESS_PASS: policy.access_pass.enabled,
    }
    return enabled[method]


def _is_allowed(policy: Policy, method: SignInMethod, subject: Subject) -> bool:
    try:
        decide_method(policy, method, subject, Verdicts())
    except KeyvouchError:
        return False
    return True

"""`keyvouch admin explain`, and the table of rules of `keyvouch sign-in --explain`: which rule decided what."""

from __future__ import annotations

from collections.abc import Sequence

from keyvouch.errors import UsageError
from keyvouch.v1 import common_pb2, oversight_pb2
from keyvouch_client.commands.invocation import Invocation
from keyvouch_client.commands.messages import document, spoken
from keyvouch_client.commands.output import inert, table
from keyvouch_client.commands.requirements import require

__all__ = ["explain", "rule_table"]

_REFUSED = common_pb2.RULE_OUTCOME_REFUSED


def rule_table(rules: Sequence[common_pb2.RuleVerdict]) -> str:
    """The rules in the order in which they were asked; the first that refused decided, and is marked."""
    decided = next((place for place, rule in enumerate(rules) if rule.outcome == _REFUSED), None)
    rows = [
        (
            ">" if place == decided else " ",
            rule.rule,
            spoken(common_pb2.RuleOutcome.Name(rule.outcome), "RULE_OUTCOME_").replace("_", " "),
            f"{rule.detail} ({rule.reason})" if rule.reason else rule.detail,
        )
        for place, rule in enumerate(rules)
    ]
    return table((" ", "rule", "verdict", "detail"), rows, fold=True)


async def explain(run: Invocation) -> None:
    """Show which rule decides what, of a sign-in or of a question."""
    request = _question(run)
    async with run.session() as session:
        told = await session.call(session.connection.oversight.ExplainSignIn, request)
    run.output.show(document(told), *_lines(told, asked=not request.sign_in_id))


def _lines(told: oversight_pb2.ExplainSignInResponse, *, asked: bool) -> list[str]:
    if not told.rules:
        return ["Nothing was written down of which rules were asked: the sign-in is older than that."]
    deciding = next((rule for rule in told.rules if rule.outcome == _REFUSED), None)
    if asked:
        verdict = "It would be allowed." if told.allowed else "It would be refused."
    else:
        verdict = f"The sign-in is {spoken(common_pb2.SignInState.Name(told.state), 'SIGN_IN_STATE_') or 'unknown'}."
    by = f" {inert(deciding.rule)} decided." if deciding else ""
    return [rule_table(told.rules), "", f"{verdict}{by} Policy version: {told.policy_version}."]


def _question(run: Invocation) -> oversight_pb2.ExplainSignInRequest:
    given = run.arguments
    asks = given.of is not None or given.app is not None
    if (given.sign_in is not None) == asks or (asks and (given.of is None or given.app is None)):
        raise UsageError(
            "Which sign-in is meant is not clear.", fix="Name its id, or --user and --app of one that would be begun."
        )
    if given.sign_in is not None:
        return oversight_pb2.ExplainSignInRequest(sign_in_id=given.sign_in)
    question = oversight_pb2.SignInQuestion(
        user=given.of,
        app_id=given.app,
        audience=given.audience,
        method=common_pb2.SignInMethod.Value(f"SIGN_IN_METHOD_{given.method.upper()}"),
        phishing_resistant=given.phishing_resistant,
    )
    if given.assurance is not None:
        require(question.required_assurance, given.assurance)
    return oversight_pb2.ExplainSignInRequest(question=question)

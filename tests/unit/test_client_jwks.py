"""Keys of access tokens in a resource server: parsed strictly, kept, and asked for again with restraint."""

from __future__ import annotations

import asyncio
import json

import pytest

from keyvouch.errors import MalformedError, Reason, UnavailableError
from keyvouch_client import JwksDocument
from keyvouch_client.jwks import JwksCache, SyncJwksCache, key_id_of
from support.fake_world import ISSUER, Issuer, claims_for


class CountedKeys:
    """A source whose keys change and which counts the questions."""

    def __init__(self, *issuers: Issuer) -> None:
        self.issuers = list(issuers)
        self.questions = 0
        self.failing = False
        self.issuer = ISSUER

    async def jwks(self) -> JwksDocument:
        return self.ask()

    def ask(self) -> JwksDocument:
        self.questions += 1
        if self.failing:
            raise UnavailableError(Reason.SERVER_UNREACHABLE, "Gone.")
        keys = [json.loads(issuer.jwks())["keys"][0] for issuer in self.issuers]
        return JwksDocument(self.issuer, json.dumps({"keys": keys}))


async def test_a_new_key_is_fetched_when_a_token_names_it() -> None:
    old, new = Issuer("old"), Issuer("new")
    source = CountedKeys(old)
    cache = JwksCache(source, issuer=ISSUER, ask_again_after=0)
    assert "old" in await cache.keys_for(old.sign(claims_for()))
    source.issuers.append(new)
    assert "new" in await cache.keys_for(new.sign(claims_for()))
    assert source.questions == 2


async def test_invented_key_ids_cause_no_storm_of_questions() -> None:
    source = CountedKeys(Issuer("known"))
    cache = JwksCache(source, issuer=ISSUER)
    token = Issuer("invented").sign(claims_for())
    await asyncio.gather(*(cache.keys_for(token) for _ in range(50)))
    assert source.questions == 1


async def test_keys_in_hand_serve_while_the_source_is_gone() -> None:
    known = Issuer("known")
    source = CountedKeys(known)
    cache = JwksCache(source, issuer=ISSUER, ask_again_after=0)
    await cache.keys_for(known.sign(claims_for()))
    source.failing = True
    assert "known" in await cache.keys_for(Issuer("invented").sign(claims_for()))


async def test_without_any_key_nobody_is_judged() -> None:
    source = CountedKeys(Issuer("known"))
    source.failing = True
    with pytest.raises(UnavailableError):
        await JwksCache(source, issuer=ISSUER).keys_for("x.y.z")


async def test_keys_of_another_issuer_are_not_used() -> None:
    source = CountedKeys(Issuer("known"))
    source.issuer = "https://evil.test"
    with pytest.raises(UnavailableError):
        await JwksCache(source, issuer=ISSUER).keys_for("x.y.z")
    with pytest.raises(UnavailableError):
        SyncJwksCache(source.ask, issuer=ISSUER).keys_for("x.y.z")


def test_the_twin_for_threads_asks_no_more_often() -> None:
    source = CountedKeys(Issuer("known"))
    cache = SyncJwksCache(source.ask, issuer=ISSUER)
    for _ in range(5):
        cache.keys_for(Issuer("invented").sign(claims_for()))
    assert source.questions == 1


GOOD_JWK = json.loads(Issuer().jwks())["keys"][0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"keys": {}}',
        '{"keys": ["x"]}',
        json.dumps({"keys": [GOOD_JWK, GOOD_JWK]}),
        json.dumps({"keys": [{**GOOD_JWK, "kid": ""}]}),
        json.dumps({"keys": [{**GOOD_JWK, "x": "AA"}]}),
        json.dumps({"keys": [{**GOOD_JWK, "x": "!" * 43}]}),
        json.dumps({"keys": [{**GOOD_JWK, "x": GOOD_JWK["y"]}]}),
        json.dumps({"keys": [GOOD_JWK], "more": "x" * 70_000}),
        "[" * 100_000,
    ],
)
def test_a_broken_jwk_set_is_refused(text: str) -> None:
    assert list(JwksDocument(ISSUER, json.dumps({"keys": [GOOD_JWK]})).keys()) == ["key-1"]
    with pytest.raises(MalformedError):
        JwksDocument(ISSUER, text).keys()


def test_keys_of_other_kinds_are_passed_over() -> None:
    text = json.dumps({"keys": [{"kty": "RSA", "kid": "r"}, {**GOOD_JWK, "kid": "e", "use": "enc"}, GOOD_JWK]})
    assert list(JwksDocument(ISSUER, text).keys()) == ["key-1"]


@pytest.mark.parametrize("token", ["", ".", "a", "!!.x.y", "e30.x.y", "W10.x.y", "eyJraWQiOjF9.x.y"])
def test_a_key_id_that_is_none_is_empty(token: str) -> None:
    assert key_id_of(Issuer("known").sign(claims_for())) == "known"
    assert key_id_of(token) == ""

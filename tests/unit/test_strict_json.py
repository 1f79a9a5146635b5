"""Signed JSON has one meaning, or it is refused."""

from __future__ import annotations

import pytest

from keyvouch.attestation import strict_json
from keyvouch.attestation.strict_json import read_object


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{}", {}),
        ('{"a":[1,-2,0.5,true,null,"\\u00e9"]}', {"a": [1, -2, 0.5, True, None, "é"]}),
        (' {"a":{"a":{"a":1}}}\n', {"a": {"a": {"a": 1}}}),
        ('{"a":' + "9" * 18 + "}", {"a": 10**18 - 1}),
        ('{"a":-' + "9" * 18 + "}", {"a": 1 - 10**18}),
        ('{"a":1e308}', {"a": 1e308}),
        ('{"a":"\\ud83d\\ude00"}', {"a": "\U0001f600"}),
        ('{"\\ud83d\\ude00":"\\ud7ff\\ue000"}', {"\U0001f600": "\ud7ff\ue000"}),
        ('{"a":"\\\\ud800"}', {"a": "\\ud800"}),
    ],
)
def test_json_that_is_read(text: str, value: object) -> None:
    assert read_object(text.encode()) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "null",
        "[]",
        '"a"',
        "{} {}",
        "{'a':1}",
        '{"a":1,}',
        '{"a":1,"a":1}',
        '{"a":1,"\\u0061":2}',
        '{"b":{"a":1,"a":1}}',
        '{"a":NaN}',
        '{"a":Infinity}',
        '{"a":-Infinity}',
        '{"a":1e309}',
        '{"a":-1e309}',
        '{"a":1' + "0" * 18 + "}",
        '{"a":-1' + "0" * 18 + "}",
        '{"a":1' + "0" * 5000 + "}",
        '{"a":01}',
        '{"a":\u0661}',
        '{"a":' + "[" * 100_000,
        '{"a":' + "[" * 100_000 + "]" * 100_000 + "}",
        "\ufeff{}",
        '{"a":"\\ud800"}',
        '{"a":"\\uDFFF"}',
        '{"a":"x\\udbffy"}',
        '{"a":"\\udc00\\ud800"}',
        '{"\\ud800":1}',
        '{"a":["x",["\\ud800"]]}',
        '{"a":[{"b":1},{"\\ud800":1}]}',
    ],
)
def test_json_that_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        read_object(text.encode())


def test_json_is_utf8() -> None:
    assert read_object('{"a":"é"}'.encode()) == {"a": "é"}
    for data in ('{"a":"é"}'.encode("latin-1"), '{"a":"e"}'.encode("utf-16"), b'{"a":"\xed\xa0\x80"}'):
        with pytest.raises(ValueError, match=r"\S"):
            read_object(data)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_a_surrogate_at_the_deepest_level(opening: str, closing: str) -> None:
    inside = strict_json.MAX_DEPTH - 1
    for text, is_read in (("\\u00e9", True), ("\\ud800", False)):
        document = f'{{"a":{opening * inside}"{text}"{closing * inside}}}'.encode()
        if is_read:
            assert read_object(document)
            continue
        with pytest.raises(ValueError, match="character"):
            read_object(document)


@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_the_depth_of_json(opening: str, closing: str) -> None:
    assert strict_json.MAX_DEPTH == 32
    inside = strict_json.MAX_DEPTH - 1
    for leaf in ("1", "", "[]", "{}"):
        nested = opening * inside + (leaf or "1") + closing * inside
        text = f'{{"x":1,"a":{nested},"y":[{{}},2]}}'.encode()
        if leaf in ("[]", "{}"):
            with pytest.raises(ValueError, match="deep"):
                read_object(text)
        else:
            assert read_object(text)["x"] == 1

"""P9: strangers who guess in parallel from everywhere. A million guesses: `tests/bench/access_passes.py guesses`."""

from __future__ import annotations

from pathlib import Path

from support.pass_guessing import besiege


async def test_twenty_thousand_guesses_and_five_comparisons_of_each_pass_P9_P18(server_template: Path, tmp_path: Path):
    siege = await besiege(server_template, tmp_path, guesses=20_000)
    assert siege.answers["opened"] == 0
    assert sum(siege.answers.values()) == siege.guesses
    assert (len(siege.compared), siege.most_compared) == (siege.passes, 5)
    assert siege.wrong == siege.compared.total() == 5 * siege.passes
    assert siege.events == {"pass_guessed tap_": siege.passes, "pass_budget pass": 1}
    assert siege.answers["throttled"] > siege.guesses / 2
    assert siege.owner_tries
    assert sum(siege.owner_tries) / len(siege.owner_tries) < 60

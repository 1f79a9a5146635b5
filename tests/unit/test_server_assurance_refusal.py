"""What a caller without a session learns when no key of a user is good enough."""

from __future__ import annotations

import pytest

from keyvouch.errors import Reason, RefusedError
from keyvouch_server.domain.policy import decide_assurance, decide_some_key

HARDWARE = "hardware/hardware_gated/attested"
SOFTWARE, TPM = "software/software_gated/self", "tpm/hardware_gated/attested/Maker Root"


@pytest.mark.parametrize("keys", [(), (TPM,), (SOFTWARE, TPM)], ids=("none", "good", "one of two"))
def test_one_good_key_is_enough_and_none_at_all_tells_nothing_KI1(keys: tuple[str, ...]):
    decide_some_key(keys, HARDWARE)


def test_the_refusal_names_what_is_required_and_not_what_was_found_P12():
    with pytest.raises(RefusedError) as caught:
        decide_some_key((SOFTWARE, SOFTWARE), HARDWARE)
    assert caught.value.reason is Reason.ASSURANCE_TOO_LOW
    assert caught.value.metadata == {"required": HARDWARE}
    assert SOFTWARE not in str(caught.value)


def test_the_owner_of_a_key_is_told_what_it_proves_H8():
    with pytest.raises(RefusedError) as caught:
        decide_assurance(SOFTWARE, HARDWARE)
    assert caught.value.metadata == {"required": HARDWARE, "found": SOFTWARE}

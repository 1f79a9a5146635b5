"""Tables, sentences and times as `keyvouch` shows them to people: what fits, what is folded, what becomes a card."""

from __future__ import annotations

import io

import pytest

from keyvouch.errors import UsageError
from keyvouch.v1 import administration_pb2, common_pb2, security_info_pb2
from keyvouch_client.commands.audit import record_entries, record_table
from keyvouch_client.commands.devices import device_table
from keyvouch_client.commands.explaining import rule_table
from keyvouch_client.commands.notices import campaign_lines, lost_or_replaced_lines, risk_line
from keyvouch_client.commands.output import Output, details, table
from keyvouch_client.commands.parser import CommandLineError, build_parser
from keyvouch_client.commands.requirements import require
from keyvouch_client.commands.users import user_table

ID = "dev_" + "a" * 26
NOON = 1_800_000_000


class Screen(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def output() -> Output:
    return Output(as_json=False, utc=True, stdout=io.StringIO(), stderr=io.StringIO())


def widest(text: str) -> int:
    return max(map(len, text.splitlines()))


# folding


def test_a_last_column_is_folded_between_words_where_it_may_be() -> None:
    shown = table(("rule", "detail"), [("first", "word " * 20), ("second", "short")], columns=60, fold=True)
    lines = shown.splitlines()
    assert widest(shown) <= 60
    assert [line.split()[0] for line in (lines[1], lines[-1])] == ["first", "second"]
    assert lines[2].startswith(" " * 8 + "word")
    assert shown.count("word") == 20


def test_what_may_not_be_folded_or_has_no_room_becomes_a_card() -> None:
    row = ("x" * 40, "word " * 20)
    for fold, columns in ((False, 100), (True, 50)):
        assert table(("a", "b"), [row], columns=columns, fold=fold).startswith("a  xxxx")
    assert table(("a", "b"), [row], columns=200).splitlines()[0].split() == ["A", "B"]


def test_a_control_character_in_a_folded_column_is_harmless() -> None:
    assert "\x1b" not in table(("a",), [("\x1b[2J " * 30,)], columns=40, fold=True)


def test_sentences_are_broken_between_words_on_a_terminal_and_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    sentence = "The receipt is there; `keyvouch verify receipt --explain` says what it proves to whoever asks."
    for stream, broken in ((Screen(), True), (io.StringIO(), False)):
        output = Output(as_json=False, stdout=stream, stderr=stream)
        output.show({}, f"    {sentence}", "short")
        output.note(sentence)
        shown = stream.getvalue()
        assert (widest(shown) <= 50) == broken
        assert " ".join(shown.split()).count(sentence) == 2
    programs = Screen()
    Output(as_json=True, stdout=programs).show({"text": sentence})
    assert len(programs.getvalue().splitlines()) == 1


def test_details_stand_one_below_the_other() -> None:
    assert details(("user", "ada"), ("groups", "")) == "user    ada\ngroups  -"


def test_times_in_tables_are_short(output: Output) -> None:
    assert output.minute(NOON) == "2027-01-15 08:00Z"
    assert (output.minute(0), output.minute(10**18)) == ("-", str(10**18))


def test_a_folded_sentence_keeps_its_indent(output: Output) -> None:
    lines = output.folded("word " * 40, 4)
    assert all(line.startswith("    word") and len(line) <= 100 for line in lines)


# what is shown in 100 columns


def test_a_device_with_its_key_fits_a_hundred_columns(output: Output) -> None:
    assurance = common_pb2.Assurance(
        protection=common_pb2.PROTECTION_SMARTCARD,
        verification=common_pb2.VERIFICATION_HARDWARE_GATED,
        provenance=common_pb2.PROVENANCE_CERTIFIED,
    )
    device = common_pb2.Device(device_id=ID, display_name="Badge", assurance=assurance, last_used_at=NOON)
    shown = device_table(output, [device])
    assert widest(shown) <= 100
    for word in ("smartcard", "hardware", "certified", "2027-01-15 08:00Z", ID):
        assert word in shown


def test_users_fit_a_hundred_columns_and_a_mark_is_explained() -> None:
    user = administration_pb2.User(
        user_id="usr_" + "a" * 26,
        username="augusta",
        display_name="Ada Lovelace",
        role=administration_pb2.ROLE_GLOBAL_ADMINISTRATOR,
    )
    assert "!" not in user_table([user])
    flagged = administration_pb2.User(username="bob", flagged=True, kind=common_pb2.USER_KIND_GUEST)
    shown = user_table([user, flagged])
    assert widest(shown) <= 100
    assert [line[0] for line in shown.splitlines()[1:3]] == [" ", "!"]
    assert "keyvouch admin risk list --open" in shown


# rules


RULES = (
    common_pb2.RuleVerdict(rule="approval.enabled", outcome=common_pb2.RULE_OUTCOME_ALLOWED, detail="version 3"),
    common_pb2.RuleVerdict(rule="app", outcome=common_pb2.RULE_OUTCOME_NOT_CONCERNED),
    common_pb2.RuleVerdict(
        rule="keys", outcome=common_pb2.RULE_OUTCOME_REFUSED, detail="None is good enough.", reason="no_method"
    ),
    common_pb2.RuleVerdict(rule="later", outcome=common_pb2.RULE_OUTCOME_REFUSED, reason="throttled"),
)


def test_the_first_rule_that_refused_is_marked() -> None:
    _, *lines = rule_table(RULES).splitlines()
    assert [line[0] for line in lines] == [" ", " ", ">", " "]
    assert lines[1].split() == ["app", "not", "concerned", "-"]
    assert "None is good enough. (no_method)" in lines[2]


# notices


def test_a_campaign_says_what_and_until_when(output: Output) -> None:
    wanted = common_pb2.AssuranceRequirement(
        protection=common_pb2.REQUIRED_PROTECTION_HARDWARE,
        verification=common_pb2.VERIFICATION_HARDWARE_GATED,
        provenance=common_pb2.PROVENANCE_ATTESTED,
    )
    due = common_pb2.CampaignNotice(name="Keys\x1b[2J", required_by=NOON, required_assurance=wanted)
    (line,) = campaign_lines(output, [due])
    assert "register a key in hardware whose PIN the hardware checks, attested, until 2027-01-15" in line
    assert "\x1b" not in line
    due.overdue = True
    due.required_assurance.Clear()
    assert "register a key, was due" in campaign_lines(output, [due])[0]


def test_the_question_after_a_pass_names_the_devices() -> None:
    told = security_info_pb2.GetSecurityInfoResponse(devices=[common_pb2.Device(device_id=ID, display_name="Phone")])
    assert lost_or_replaced_lines(told) == []
    told.ask_lost_or_replaced = True
    question, answers = lost_or_replaced_lines(told)
    assert "you have: Phone. Is one of them lost or replaced?" in question
    assert "`keyvouch security-info lost DEVICE`" in answers


def test_events_are_counted_in_words() -> None:
    assert risk_line(0) == []
    assert "one event looks" in risk_line(1)[0]
    assert "7 events look" in risk_line(7)[0]


# a required assurance


@pytest.mark.parametrize(
    ("text", "provenance"),
    [("any", "unattested"), ("hardware", "attested"), ("hardware/hardware_gated/certified/fleet", "certified")],
)
def test_a_required_assurance_is_written_in_a_word_or_in_parts(text: str, provenance: str) -> None:
    message = common_pb2.AssuranceRequirement()
    require(message, text)
    assert common_pb2.Provenance.Name(message.provenance) == f"PROVENANCE_{provenance.upper()}"
    assert list(message.anchors) == (["fleet"] if "fleet" in text else [])


@pytest.mark.parametrize("text", ["", "gold", "hardware/always", "hardware/hardware_gated/attested/"])
def test_what_is_no_assurance_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no assurance"):
        require(common_pb2.AssuranceRequirement(), text)


def test_a_mark_stands_behind_the_first_value_of_a_card() -> None:
    rows = [("*", "ada", ID), (" ", "grace", ID)]
    assert table((" ", "user", "id"), rows, columns=30).splitlines()[::3] == ["user  ada  *", "user  grace"]
    assert table((" ", "user", "id"), rows, columns=80).splitlines()[1].startswith("*  ada")


def test_devices_of_everybody_say_whose_they_are(output: Output) -> None:
    device = common_pb2.Device(device_id=ID, user_id="usr_1", display_name="laptop")
    assert device_table(output, [device], {"usr_1": "ada"}).splitlines()[1].startswith("ada   laptop")
    assert "USER" not in device_table(output, [device])


def test_audit_records_are_one_line_each_in_a_pipe_and_entries_on_a_screen(output: Output) -> None:
    record = administration_pb2.AuditRecord(
        sequence=7, at=NOON, action="group.add_member", actor="usr_1", subject="grp_1", user_id="usr_2", outcome="ok"
    )
    (line,) = record_table(output, [record]).splitlines()[1:]
    assert line.split()[-4:] == ["usr_1", "grp_1", "usr_2", "-"]
    entry = record_entries(output, [record]).splitlines()
    assert [words.split() for words in entry[1:]] == [["by", "usr_1"], ["on", "grp_1"], ["user", "usr_2"]]
    assert entry[0].split()[0] == "7"
    assert record_table(output, []) == record_entries(output, []) == ""


def test_the_usage_of_a_command_is_told_where_it_was_typed_wrongly() -> None:
    with pytest.raises(CommandLineError, match="See `keyvouch admin pass replace --help`"):
        build_parser().parse_args(["admin", "pass", "replace", "ada"])
    with pytest.raises(CommandLineError, match="'x' is not a whole number from 1"):
        build_parser().parse_args(["admin", "policy", "diff", "x"])

import pytest

from hf_llm.data.corpus.filter_pipeline import RedactionStep
from hf_llm.data.corpus.pii import KINDS, Redaction, redact_text
from tests.data.corpus import planted


def test_what_identifies_people_is_replaced_and_nothing_else():
    personal = planted.personal()
    right = 0
    for kind, value, text in personal:
        after, counts = redact_text(text, Redaction())
        right += after == text.replace(value, f"<{kind}>") and counts == {kind: 1}
    wrong = [text for text in planted.impersonal() if redact_text(text, Redaction())[0] != text]
    assert right / len(personal) >= 0.98
    assert right / (right + len(wrong)) >= 0.98, wrong


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_kinds_that_are_asked_for_are_replaced(kind):
    text = "\n".join(f"Here: {values[0]}." for values in planted.PERSONAL.values())
    after, counts = redact_text(text, Redaction(kinds=[kind]))
    assert counts == {kind: 1}
    assert after == text.replace(planted.PERSONAL[kind][0], f"<{kind}>")


def test_national_numbers_are_those_of_the_regions_named():
    text = "Ring 020 7946 0958 or (415) 555-2671."
    assert redact_text(text, Redaction(regions=["US"]))[0] == "Ring 020 7946 0958 or <phone>."
    assert redact_text(text, Redaction(regions=["GB"]))[0] == "Ring <phone> or (415) 555-2671."


def test_programs_keep_what_they_compute_with():
    program = (
        "x = [100, 200, 300]\nmatrix[1:20, 3:40] @ other.T\nHOST = '127.0.0.1'  # since 1.2.3\n0xdeadbeef + 12345678\n"
    )
    assert redact_text(program, Redaction())[0] == program


def test_redacting_twice_changes_nothing_more():
    for _, _, text in planted.personal():
        once, _ = redact_text(text, Redaction())
        assert redact_text(once, Redaction()) == (once, {})


def test_the_step_counts_by_kind():
    step = RedactionStep(Redaction())
    assert step.format("a@b.org, c@d.org and 8.8.8.8") == "<email>, <email> and <ip>"
    assert {name: metric.total for name, metric in step.stats.stats.items()} == {"redacted_email": 2, "redacted_ip": 1}


@pytest.mark.parametrize("settings", [{"kinds": ["name"]}, {"regions": ["USA"]}])
def test_unknown_kinds_and_regions_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Redaction(**settings)

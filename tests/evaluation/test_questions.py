"""Which replies hold the right answer."""

import pytest

from hf_llm.evaluation.questions import holds_answer, score_replies


@pytest.mark.parametrize(
    ("reply", "answer", "is_right"),
    [
        ("In Oakhaven.", "Oakhaven", True),
        ("Mara lives in OAKHAVEN, by the river.", "oakhaven", True),
        ("Mara lives in Oakhavens.", "Oakhaven", False),
        ("She has a grey cat.", "a grey cat", True),
        ("She has a cat, which is grey.", "a grey cat", False),
        ("grey a cat", "a grey cat", False),
        ("", "six", False),
        ("It is 42.", "42", True),
        ("It is 421.", "42", False),
        ("anything", "?", False),
    ],
)
def test_the_words_of_the_answer_stand_together(reply, answer, is_right):
    assert holds_answer(reply, answer) is is_right


def test_the_share_has_its_number_and_interval():
    scores = score_replies(["yes", "no", "yes", "maybe"], ["yes", "yes", "yes", "yes"])
    assert scores["answered_right"] == 0.5 and scores["questions"] == 4
    assert scores["answered_right_low"] == pytest.approx(0.15, abs=1e-2)  # Wilson, 2 of 4
    assert scores["answered_right_high"] == pytest.approx(0.85, abs=1e-2)

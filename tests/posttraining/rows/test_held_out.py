"""How many rows are held out is said, and what so many can tell."""

import pytest

from hf_llm.data.chat.loaders import _split_rows
from hf_llm.posttraining.rows.held_out import describe_held_out


@pytest.mark.parametrize(
    ("train", "held_out", "words"),
    [
        (104, 6, "on 104 rows, evaluating on 6 (evaluation_share: 0.05); of so few, 50% measured is 19% to 81% (95%"),
        (1, 1, "50% measured is 5% to 95%"),
        (1881, 99, "50% measured is 40% to 60%"),
        (12345, 650, "training on 12,345 rows, evaluating on 650 (evaluation_share: 0.05)"),
    ],
)
def test_describe_held_out_has_the_numbers_and_their_interval_where_they_are_few(train, held_out, words):
    line = describe_held_out(train, held_out, 0.05)
    assert words in line
    assert ("interval" in line) == (held_out < 100)


@pytest.mark.parametrize(
    ("questions", "answers", "expected"),
    [
        (110, 1, 6),  # 5.5 are rounded
        (100, 1, 5),
        (10, 1, 1),  # at least one
        (10, 30, 30),  # a question is held out with all its answers
        (200, 3, 30),
    ],
)
def test_the_share_is_of_the_questions_rounded_and_at_least_one(questions, answers, expected):
    rows = [
        {"messages": [{"role": "user", "content": f"{question}?"}], "source": 0}
        for question in range(questions)
        for _ in range(answers)
    ]
    train, held_out = _split_rows(rows, 0.05, seed=1)
    assert (len(train), len(held_out)) == (len(rows) - expected, expected)

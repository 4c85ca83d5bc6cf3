"""Tests that no right program passes."""

import pytest

from hf_llm.evaluation.code.control_tests import make_test_pair
from tests.evaluation.code.human_eval import DATA, read_problems


@pytest.mark.parametrize(
    ("tests", "control"),
    [
        ("assert f(1) == 2", "assert f(1) == 5"),
        ("assert 2 == f(1)", "assert 5 == f(1)"),
        ("assert f('a') == 'b', 'a message'", "assert f('a') == 'bx', 'a message'"),
        ("assert f(1) == True", "assert f(1) == False"),
        ("assert f(1) is None", "assert f(1) is 0"),
        ("assert f(1) == []", "assert f(1) == [[]]"),
        ("assert f(1) == -1.5", "assert f(1) == -4.0"),
        ("assert f(x) == y", "assert f(x) == [y]"),
        ("assert set(f(1)) == set([1, 2])", "assert set(f(1)) == set([3, 2])"),
        ("def check(f):\n    for x in (1, 2):\n        assert f(x) == 0", None),
        ("assert True\nassert f(1) < 2", "assert True\nassert not f(1) < 2"),
        ("assert f(1)\nassert f(2) == 3", "assert f(1)\nassert f(2) == 7"),
    ],
)
def test_every_expected_value_is_another_one(tests, control):
    plain, altered = make_test_pair(tests)
    assert plain == tests
    assert altered == (control or tests.replace("== 0", "== 1"))


def test_there_is_no_control_without_an_assertion():
    assert make_test_pair("f(1)\nassert True")[1] is None


def test_comments_do_not_tell_the_tests_from_the_control():
    plain, altered = make_test_pair("assert f(1) == 2  # easy")
    assert "#" not in plain + altered


@pytest.mark.skipif(not DATA, reason="HF_LLM_DATA is not set")
def test_every_problem_of_human_eval_has_a_control():
    assert [row["task_id"] for row in read_problems() if make_test_pair(row["test"])[1] is None] == []

"""The report on votes: counts beside every rate, and ties are ties."""

import pytest

from hf_llm.human_eval.report import compute_results, format_results, render_page, report_command, summarize_results
from tests.human_eval.comparison import make_database
from tests.page_structure import Structure


def vote_by_winner(database, outcomes, **scores):
    """Vote on the pairs in turn: `good`, `weak`, or a choice."""
    for outcome in outcomes:
        question = database.next_question("Ada")
        side_of_good = "a" if question.a.startswith("good") else "b"
        choices = {"good": side_of_good, "weak": "ab".replace(side_of_good, "")}
        assert database.record_vote(question.pair, "Ada", choices.get(outcome, outcome), **scores)


@pytest.fixture
def database(tmp_path):
    database = make_database(tmp_path, prompts=24)
    vote_by_winner(database, ["good"] * 10 + ["weak"] * 5 + ["tie"] * 8 + ["bad"])
    return database


def test_the_summary_counts_no_half_wins(database):
    results = compute_results(database)
    assert summarize_results(results) == (
        "good is preferred to weak on 10 of the 15 prompts with a preference (67%, 95% interval 42% to 85%), which may "
        "be chance; ties: 8, both bad: 1."
    )
    assert "24 votes of 1 annotator on 24 of 24 pairs" in format_results(results)
    words = " ".join(Structure(render_page(results, "votes")).text.split())
    assert "10 of 15" in words
    assert "half a win" not in words


@pytest.mark.parametrize(
    ("outcomes", "summary"),
    [
        (["tie"] * 3, "Neither good nor weak was preferred on any prompt (ties: 3, both bad: 0)."),
        (["skip"] * 2, "Nobody has chosen yet."),
        (
            ["good", "weak", "bad"],
            "good and weak are each preferred on half of the 2 prompts with a preference (ties: 0, both bad: 1).",
        ),
        (
            ["weak"] * 20,
            "weak is preferred to good on 20 of the 20 prompts with a preference (100%, 95% interval 84% to 100%); "
            "ties: 0, both bad: 0.",
        ),
    ],
)
def test_the_summary_says_what_the_votes_say(tmp_path, outcomes, summary):
    database = make_database(tmp_path, prompts=24)
    vote_by_winner(database, outcomes)
    assert summarize_results(compute_results(database)) == summary


def test_every_rate_has_its_count_and_no_interval_is_made_up(tmp_path):
    database = make_database(tmp_path, prompts=6, models=("good", "weak", "unseen"))
    question = database.next_question("Ada")
    shown = {question.a.split()[0], question.b.split()[0]}
    [unseen] = {"good", "weak", "unseen"} - shown
    database.record_vote(question.pair, "Ada", "a", score_a=4)
    results = compute_results(database)
    lines = format_results(results)
    assert f"{unseen}: not rated, nobody has voted on its answers" in lines
    best = question.a.split()[0]
    assert f"{best}: rating 1095 on 1 prompt, score 4.00 of 5 (1 score)" in lines
    assert "A is chosen in 1 of 1 choices (100%, 95% interval 21% to 100%)" in lines
    words = " ".join(Structure(render_page(results, "votes")).text.split())
    assert f"{unseen} not rated 0" in words


def test_two_shared_pairs_have_no_interval_of_kappa(tmp_path):
    database = make_database(tmp_path, prompts=2)
    for annotator, choices in (("Ada", "ab"), ("Ben", "ba")):
        for choice in choices:
            database.record_vote(database.next_question(annotator).pair, annotator, choice)
    assert compute_results(database)["agreement"]["all"]["interval"] is None


def test_the_command_of_the_report_can_be_pasted(tmp_path):
    folder = tmp_path / "my votes"
    folder.mkdir()
    assert report_command(make_database(folder)) == (
        f"python -m hf_llm.arena --votes '{folder / 'votes.sqlite'}' --report"
    )

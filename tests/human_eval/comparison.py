"""Comparisons for tests: given answers, and annotators who prefer the good one with a given probability."""

import random
from pathlib import Path

from hf_llm.human_eval.comparison_plan import ComparisonPlan, draw_pairs
from hf_llm.human_eval.server import ArenaServer
from hf_llm.human_eval.votes import Vote, VoteDatabase, create_database
from tests.served import in_thread


def plan(prompts: int = 20, models: tuple[str, ...] = ("good", "weak"), seed: int = 3) -> ComparisonPlan:
    """Plan a comparison in which every model's answer says whose it is."""
    questions = [[{"role": "user", "content": f"Question {number}?"}] for number in range(prompts)]
    answers = {name: {number: f"{name} says {number}" for number in range(prompts)} for name in models}
    return ComparisonPlan(
        {name: {"file": "x"} for name in models}, questions, draw_pairs(prompts, list(models), seed), seed, answers
    )


def make_database(folder: Path, prompts: int = 20, **more) -> VoteDatabase:
    path = folder / "votes.sqlite"
    create_database(path, plan(prompts, **more))
    return VoteDatabase(path, timeout_seconds=0.3)


def vote_on_all(database: VoteDatabase, annotator: str, right: float = 1.0, seed: int = 0, **scores) -> None:
    """Vote on every pair: for the answer of `good`, or with the probability 1 - right for the other."""
    rng = random.Random(f"{annotator}{seed}")
    while question := database.next_question(annotator):
        good = "a" if question.a.startswith("good") else "b"
        choice = good if rng.random() < right else {"a": "b", "b": "a"}[good]
        assert database.record_vote(question.pair, annotator, choice, **scores)


def vote(pair: int, choice: str, annotator: str = "Ada", first_is_a: bool = True, **more) -> Vote:
    """Make a vote between `x` and `y`, in memory."""
    prompt = more.pop("prompt", pair)
    first, second = more.pop("first", "x"), more.pop("second", "y")
    return Vote(pair, prompt, annotator, choice, first, second, first if first_is_a else second, **more)


def serving(database, host="127.0.0.1", port=0, **more):
    """Run the arena's server in a thread, for the length of a `with` block."""
    return in_thread(ArenaServer(database, host, port, **more))

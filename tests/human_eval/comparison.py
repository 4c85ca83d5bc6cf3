"""Comparisons to judge in tests: given answers, and annotators who are right as often as they are told to be."""

import random
from pathlib import Path

from hf_llm.human_eval.comparison_plan import Plan, paired
from hf_llm.human_eval.server import JudgingServer
from hf_llm.human_eval.votes import Vote, Votes, create_votes
from tests.served import in_thread


def plan(prompts: int = 20, models: tuple[str, ...] = ("good", "weak"), seed: int = 3) -> Plan:
    """A comparison in which every model's answer says whose it is."""
    questions = [[{"role": "user", "content": f"Question {number}?"}] for number in range(prompts)]
    answers = {name: {number: f"{name} says {number}" for number in range(prompts)} for name in models}
    return Plan({name: {"file": "x"} for name in models}, questions, paired(prompts, list(models), seed), seed, answers)


def votes_file(folder: Path, prompts: int = 20, **more) -> Votes:
    path = folder / "votes.sqlite"
    create_votes(path, plan(prompts, **more))
    return Votes(path, patience=0.3)


def judge_all(votes: Votes, annotator: str, right: float = 1.0, seed: int = 0, **scores) -> None:
    """Vote on everything: for the answer of `good`, or with the chance 1 - right for the other."""
    rng = random.Random(f"{annotator}{seed}")
    while question := votes.question(annotator):
        good = "a" if question.a.startswith("good") else "b"
        choice = good if rng.random() < right else {"a": "b", "b": "a"}[good]
        assert votes.vote(question.pair, annotator, choice, **scores)


def vote(pair: int, choice: str, annotator: str = "Ada", first_is_a: bool = True, **more) -> Vote:
    """A vote between `x` and `y`, in memory."""
    prompt = more.pop("prompt", pair)
    first, second = more.pop("first", "x"), more.pop("second", "y")
    return Vote(pair, prompt, annotator, choice, first, second, first if first_is_a else second, **more)


def serving(votes, host="127.0.0.1", port=0, **more):
    """The judging server in a thread, for the length of a `with` block."""
    return in_thread(JudgingServer(votes, host, port, **more))

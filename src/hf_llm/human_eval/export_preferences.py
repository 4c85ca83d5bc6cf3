"""Turn votes into training data: TRL's conversational preference pairs, `prompt`, `chosen` and `rejected`."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_llm.core.atomic_io import write_text
from hf_llm.core.errors import UserError
from hf_llm.human_eval.preference_statistics import majority_outcomes
from hf_llm.human_eval.votes import VoteDatabase

# Why a pair is dropped, by the outcome that most annotators chose; None where no outcome has a majority.
_DROP_REASONS = {"tie": "tie", "bad": "both bad", None: "annotators disagree"}


def build_preference_pairs(database: VoteDatabase, dropped: Counter) -> Iterator[dict[str, Any]]:
    """Yield a preference for each pair of which most annotators prefer the same answer; count the others in `dropped`.

    A pair with an empty answer is dropped too: the loaders of `dpo` and `reward` refuse it.
    """
    prompts = database.read_prompts()
    votes = database.read_votes()
    outcomes = majority_outcomes(votes)
    any_vote = {vote.pair: vote for vote in votes}  # any vote on a pair names its prompt and models

    for pair, outcome in outcomes.items():
        vote = any_vote[pair]
        if outcome == "first":
            preferred, other = vote.first, vote.second
        elif outcome == "second":
            preferred, other = vote.second, vote.first
        else:
            dropped[_DROP_REASONS[outcome]] += 1
            continue

        chosen = database.read_answer(vote.prompt, preferred).strip()
        rejected = database.read_answer(vote.prompt, other).strip()
        if not chosen or not rejected:
            dropped["an empty answer"] += 1
            continue
        yield {
            "prompt": prompts[vote.prompt],
            "chosen": _assistant_message(chosen),
            "rejected": _assistant_message(rejected),
        }

    dropped["only skipped"] += len(any_vote.keys() - outcomes.keys())


def export_preferences(database: VoteDatabase, path: Path) -> tuple[int, Counter]:
    """Write the preferences as JSONL, whole or not at all. Returns how many, and what was dropped.

    Raises UserError where there is no preference to write, or the file's ending is not `.jsonl`.
    """
    if path.suffix != ".jsonl":
        raise UserError(f"--export: {path} has to end in .jsonl, or training will not recognize its format")

    dropped: Counter = Counter()
    preferences = list(build_preference_pairs(database, dropped))
    if not preferences:
        reason = format_counts(dropped) or "no votes"
        raise UserError(f"{database.path} holds no preference yet ({reason}); vote on some pairs first")

    lines = [json.dumps(preference, ensure_ascii=False) + "\n" for preference in preferences]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(lines))
    return len(preferences), dropped


def format_counts(dropped: Counter) -> str:
    """Return counts as `3 tie, 1 both bad`, the largest first."""
    return ", ".join(f"{count} {reason}" for reason, count in dropped.most_common() if count)


def _assistant_message(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]

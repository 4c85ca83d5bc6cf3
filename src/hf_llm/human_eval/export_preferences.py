"""Votes as training data: TRL's conversational preference rows, `prompt`, `chosen` and `rejected`."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hf_llm.core.atomic_io import write_text
from hf_llm.core.errors import UserError
from hf_llm.human_eval.preference_statistics import verdicts
from hf_llm.human_eval.votes import Votes


def preference_rows(votes: Votes, left_out: Counter) -> Iterator[dict[str, Any]]:
    """A row for each pair of which most annotators prefer the same answer; the others are counted in `left_out`.

    An empty answer teaches nothing and is no row (the loaders of `dpo` and `reward` refuse it).
    """
    prompts, cast = votes.prompts(), votes.standing()
    pairs = {vote.pair: vote for vote in cast}
    for pair, verdict in verdicts(cast).items():
        vote = pairs[pair]
        if verdict not in ("first", "second"):
            left_out[{"tie": "tie", "bad": "both bad", None: "annotators disagree"}[verdict]] += 1
            continue
        better, worse = (vote.first, vote.second) if verdict == "first" else (vote.second, vote.first)
        chosen, rejected = (votes.answer(vote.prompt, model).strip() for model in (better, worse))
        if not chosen or not rejected:
            left_out["an empty answer"] += 1
            continue
        yield {"prompt": prompts[vote.prompt], "chosen": _said(chosen), "rejected": _said(rejected)}
    left_out["only skipped"] += len(pairs.keys() - verdicts(cast).keys())


def export(votes: Votes, path: Path) -> tuple[int, Counter]:
    """Write the preferences as JSONL, whole or not at all; how many, and what was left out.

    Raises UserError where there is no preference to write, or the file's ending is not `.jsonl`.
    """
    if path.suffix != ".jsonl":
        raise UserError(f"--export: {path} has to end in .jsonl, or training will not know what it is")
    left_out: Counter = Counter()
    rows = list(preference_rows(votes, left_out))
    if not rows:
        why = counted(left_out) or "no votes"
        raise UserError(f"{votes.path} holds no preference yet ({why}); judge some pairs first")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows), left_out


def counted(left_out: Counter) -> str:
    """The counts in words."""
    return ", ".join(f"{count} {reason}" for reason, count in left_out.most_common() if count)


def _said(content: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": content}]

"""Score replies to questions by the answers that are known to be right."""

import re
from typing import Any

from hf_llm.evaluation.intervals import wilson_interval

_WORDS = re.compile(r"\w+")


def holds_answer(reply: str, answer: str) -> bool:
    """Whether the words of the right answer stand in a reply, one after the other; case and punctuation do not count.

    A reply may say more, as a whole sentence does.
    """
    words = _WORDS.findall(answer.lower())
    reply_words = _WORDS.findall(reply.lower())
    starts = range(len(reply_words) - len(words) + 1)
    return bool(words) and any(reply_words[start : start + len(words)] == words for start in starts)


def score_replies(replies: list[str], answers: list[str]) -> dict[str, Any]:
    """Return the share of the replies that hold their answer (`answered_right`) with its 95% interval, and their number
    (`questions`)."""
    right = sum(holds_answer(reply, answer) for reply, answer in zip(replies, answers, strict=True))
    low, high = wilson_interval(right, len(answers))
    return {
        "answered_right": right / len(answers),
        "answered_right_low": low,
        "answered_right_high": high,
        "questions": len(answers),
    }

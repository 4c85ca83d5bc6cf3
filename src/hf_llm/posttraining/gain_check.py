"""Notice a training after which the model is no better on held-out rows than before, as far as these can show it."""

import math
from typing import Any

from transformers import Trainer

from hf_llm.core.format import format_score
from hf_llm.evaluation.intervals import Z_95, wilson_interval

EVEN = 0.5  # share of pairs whose chosen answer became likelier than the rejected one, where nothing was learned
REMEDY = (
    "hold out more rows to see smaller gains (evaluation_share), train longer, or change the learning rate "
    "(docs/alignment.md lists usual ones)"
)


def describe_no_gain(trainer: Trainer, metrics: dict[str, Any]) -> str | None:
    """Return a warning where a training gained nothing that its held-out rows can show; None where it did, or it is not
    known.

    `metrics` are those of the last evaluation. Rewards (GRPO, RLOO, PPO) are compared with those before the first
    update. Margins (DPO, KTO) are 0 there, since the model is its own reference.
    """
    if "eval_reward" in metrics:
        return _compare_rewards(trainer.state.log_history, metrics)
    if metrics.get("eval_pairs") and "eval_rewards/accuracies" in metrics:
        return _test_pairs(metrics)
    if "eval_rewards/margins_error" in metrics:
        return _test_margin(metrics)
    return None


def _compare_rewards(history: list[dict[str, Any]], metrics: dict[str, Any]) -> str | None:
    """Compare the mean reward with that of the evaluation before the first update."""
    starts = [entry for entry in history if entry.get("step") == 0 and "eval_reward" in entry]
    if not starts:
        return None
    start = starts[0]
    if not all("eval_reward_std" in entry and entry.get("eval_completions") for entry in (start, metrics)):
        return None
    gain = metrics["eval_reward"] - start["eval_reward"]
    variances = [entry["eval_reward_std"] ** 2 / entry["eval_completions"] for entry in (start, metrics)]
    half = Z_95 * math.sqrt(sum(variances))
    if gain > half:
        return None
    return (
        f"this training gained no reward that its evaluation can show: {format_score(start['eval_reward'])} before and "
        f"{format_score(metrics['eval_reward'])} after it, a difference of {_describe(gain, half)} on "
        f"{metrics['eval_completions']:,} held-out completions; {REMEDY}"
    )


def _test_pairs(metrics: dict[str, Any]) -> str | None:
    """Test in how many pairs the margin grew (a sign test: each margin was 0 before)."""
    pairs = metrics["eval_pairs"]
    share = metrics["eval_rewards/accuracies"]
    low, high = wilson_interval(share * pairs, pairs)
    if low > EVEN and metrics["eval_rewards/margins"] > 0:
        return None
    return (
        f"this training gained no preference that its evaluation can show: the margin grew in {share:.0%} of {pairs:,} "
        f"held-out pairs (95% interval {low:.0%} to {high:.0%}; by chance half), on average to "
        f"{format_score(metrics['eval_rewards/margins'])} from 0; {REMEDY}"
    )


def _test_margin(metrics: dict[str, Any]) -> str | None:
    """Test whether good answers became likelier than bad ones, which belong to other questions."""
    margin = metrics["eval_rewards/margins"]
    half = Z_95 * metrics["eval_rewards/margins_error"]
    if margin > half:
        return None
    return (
        "this training gained no preference that its evaluation can show: the margin between good and bad answers is "
        f"{_describe(margin, half)} on {metrics['eval_completions']:,} held-out answers, and was 0 before; {REMEDY}"
    )


def _describe(value: float, half: float) -> str:
    return f"{format_score(value)} (95% interval {format_score(value - half)} to {format_score(value + half)})"

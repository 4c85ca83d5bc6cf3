"""What a learning-rate schedule takes from the data: where its decay begins."""

from typing import Any

from hf_llm.data.windows import TokenWindows
from hf_llm.errors import UserError


def with_decay(settings: dict[str, Any], windows: TokenWindows, windows_per_step: int) -> dict[str, Any]:
    """`settings` of TrainingArguments; the decay of a warmup_stable_decay schedule, where they leave it open, lasts as
    long as the curriculum's last stage."""
    given = settings.get("lr_scheduler_kwargs") or {}
    if settings.get("lr_scheduler_type") != "warmup_stable_decay" or "num_decay_steps" in given:
        return settings
    steps = decay_steps(windows, windows_per_step, settings.get("max_steps") or -(-len(windows) // windows_per_step))
    return settings if steps is None else {**settings, "lr_scheduler_kwargs": {**given, "num_decay_steps": steps}}


def decay_steps(windows: TokenWindows, windows_per_step: int, max_steps: int) -> int | None:
    """The steps from the beginning of the curriculum's last stage to the end of training; None without a curriculum.

    They are the decay of a warmup_stable_decay schedule, which so falls on the data that the last stage chose. Raises
    UserError where training ends before that stage.
    """
    if not windows.in_stages:
        return None
    first = -(-windows.last_stage // windows_per_step)
    if first >= max_steps:
        seen = max_steps * windows_per_step * windows.length
        raise UserError(
            f"pretrain.training.max_steps: {max_steps} steps are {seen:,} tokens, and the last stage of "
            f"corpus.curriculum begins after {windows.last_stage * windows.length:,}; set corpus.max_tokens={seen}, so "
            "that the stages share what training sees"
        )
    return max_steps - first

"""What a learning-rate schedule takes from the data: where its decay begins."""

from hf_llm.data.windows import TokenWindows
from hf_llm.errors import UserError


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

"""Say how many rows are held out for evaluation, and how much so many can tell."""

from hf_llm.evaluation.intervals import wilson_interval

FEW_ROWS = 100  # with fewer, the interval of a share of a half is wider than from 40% to 60%


def describe_held_out(train: int, held_out: int, share: float) -> str:
    """Return the line that tells how many rows are trained on and evaluated on; `share` is `evaluation_share`.

    Rows are held out by whole questions, at least one, so their number is not exactly the share.
    """
    counts = f"training on {train:,} rows, evaluating on {held_out:,} (evaluation_share: {share:g})"
    if held_out >= FEW_ROWS:
        return counts
    low, high = wilson_interval(held_out / 2, held_out)
    return (
        f"{counts}; of so few, 50% measured is {low:.0%} to {high:.0%} (95% interval): more data or a larger "
        "evaluation_share tells more"
    )

"""EOS rate: the share of a chat model's answers to held-out prompts that have an end token."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from hf_llm.core.console import print_main
from hf_llm.core.labels import IGNORE_INDEX
from hf_llm.inference.generate import (
    default_max_new_tokens,
    generate_tokens,
    generation_stop_ids,
    load_for_generation,
)
from hf_llm.monitoring.callbacks.samples import weights_are_sharded

MAX_PROMPTS = 20
MANY_TRUNCATED = 0.2  # above this share, rows without the end of their answer are the likeliest cause
MIN_EOS_RATE = 0.5  # below it the stage warns that the model does not stop


def measure_eos_rate(trainer: Trainer, rows: Dataset, folder: Path, truncated: float = 0.0) -> dict[str, Any]:
    """Measure `stop_rate`, the share of greedy answers to MAX_PROMPTS held-out prompts that have an end token.

    An answer has at most `stop_limit` tokens. The model is the trainer's, or the one saved in `folder` where the
    trainer's is sharded over processes. `truncated` is the share of the rows that were cut at the context. Where the
    rate is below MIN_EOS_RATE, a warning is printed and returned as `stop_warning`. Returns an empty dictionary where
    no row has a prompt.
    """
    prompts = collect_prompts(rows)
    if not prompts:
        return {}
    if weights_are_sharded(trainer):
        unset_hf_deepspeed_config()  # else transformers would shard this copy too, over processes that are not here
        model, tokenizer = load_for_generation(folder)
    else:
        model = trainer.accelerator.unwrap_model(trainer.model)
        tokenizer = trainer.processing_class

    limit = default_max_new_tokens(model)
    ended = count_ended_completions(model, tokenizer, prompts, limit)
    rate = ended / len(prompts)
    measured: dict[str, Any] = {"stop_rate": rate, "stop_prompts": len(prompts), "stop_limit": limit}
    if rate < MIN_EOS_RATE:
        remedy = "train longer or on more conversations, and check with --preview that the ends of turns are supervised"
        if truncated > MANY_TRUNCATED:
            remedy = f"{truncated:.0%} of the rows were cut at the context; write `too_long: drop`, or shorten them"
        warning = (
            f"the model does not stop: {len(prompts) - ended} of {len(prompts)} answers have no end token within "
            f"{limit} tokens; {remedy}"
        )
        measured["stop_warning"] = warning
        print_main(f"\n*** WARNING: {warning}\n")
    return measured


def collect_prompts(rows: Dataset) -> list[list[int]]:
    """Return the ids before the first supervised token of up to MAX_PROMPTS conversations; documents have no prompt."""
    prompts = []
    for row in rows:
        length = next(i for i, label in enumerate(row["labels"]) if label != IGNORE_INDEX)
        if length:
            prompts.append(row["input_ids"][:length])
        if len(prompts) == MAX_PROMPTS:
            break
    return prompts


def count_ended_completions(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], limit: int
) -> int:
    """Count the greedy completions that hold an end token among their first `limit` tokens."""
    end_tokens = generation_stop_ids(model, tokenizer)
    completions = generate_tokens(model, tokenizer, prompts, limit, do_sample=False)
    return sum(completion[-1] in end_tokens for completion in completions)

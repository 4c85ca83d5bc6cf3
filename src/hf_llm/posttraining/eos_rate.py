"""Whether a chat model's answers come to an end: the share that ends by itself on prompts kept out of training."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from hf_llm.core.console import print_main
from hf_llm.inference.generate import batch_of, load, prompt_room, stop_tokens, usual_length
from hf_llm.monitoring.callbacks.samples import weights_are_sharded
from hf_llm.posttraining.sft_dataset import IGNORED

PROMPTS = 20
LEAST = 0.5  # a share of answers that end below which the model is said not to stop


def stop_rate(trainer: Trainer, rows: Dataset, folder: Path) -> dict[str, Any]:
    """`stop_rate`, the share of greedy answers to `PROMPTS` held-out prompts that end before `stop_limit` tokens.

    Of the model in the trainer, or where that is spread over processes of the one saved in `folder`. Says loudly, and
    notes as `stop_warning`, where fewer than `LEAST` of them end. Empty where no row asks a question.
    """
    prompts = held_out_prompts(rows)
    if not prompts:
        return {}
    if weights_are_sharded(trainer):
        unset_hf_deepspeed_config()  # else transformers would split this copy too, over processes that are not here
        model, tokenizer = load(folder)
    else:
        model, tokenizer = trainer.accelerator.unwrap_model(trainer.model), trainer.processing_class
    limit = usual_length(model)
    ended = answers_that_end(model, tokenizer, prompts, limit)
    found = {"stop_rate": ended / len(prompts), "stop_prompts": len(prompts), "stop_limit": limit}
    if found["stop_rate"] < LEAST:
        found["stop_warning"] = (
            f"the model does not stop: {len(prompts) - ended} of {len(prompts)} answers went on to {limit} tokens; "
            "train longer or on more conversations, and see with --preview that the ends of turns are supervised"
        )
        print_main(f"\n*** WARNING: {found['stop_warning']}\n")
    return found


def held_out_prompts(rows: Dataset) -> list[list[int]]:
    """The ids up to the first supervised token of as many conversations as are asked; documents have no prompt."""
    prompts = []
    for row in rows:
        length = next(i for i, label in enumerate(row["labels"]) if label != IGNORED)
        if length:
            prompts.append(row["input_ids"][:length])
        if len(prompts) == PROMPTS:
            break
    return prompts


def answers_that_end(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], limit: int
) -> int:
    """How many greedy answers hold an end token among their first `limit` tokens."""
    room, ends = prompt_room(model, limit), stop_tokens(model, tokenizer)
    batch = batch_of(model, tokenizer, [prompt[-room:] for prompt in prompts])
    training = model.training
    model.eval()
    try:
        tokens = model.generate(
            **batch, max_new_tokens=limit, do_sample=False, eos_token_id=ends, pad_token_id=tokenizer.pad_token_id
        )
    finally:
        model.train(training)
    made = tokens[:, batch["input_ids"].shape[1] :]
    return int(torch.isin(made, torch.tensor(ends, device=made.device)).any(dim=1).sum())

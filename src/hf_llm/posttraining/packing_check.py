"""Check that examples packed into one row do not attend to each other."""

import torch
from transformers import PreTrainedModel, Trainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from hf_llm.core.errors import UserError
from hf_llm.model.evaluation_mode import evaluation_mode
from hf_llm.monitoring.callbacks.samples import weights_are_sharded

EXAMPLE_TOKENS = 8  # the length of each of the two examples that are packed for the check
MIN_LOGIT_CHANGE = 1e-2  # share of the logits' standard deviation; a smaller change is rounding


def check_packing(trainer: Trainer) -> None:
    """Raise UserError where `packing` would let examples of one row attend to each other.

    The check runs the attention kernel of the trainer's model. It is skipped for flash attention, which separates
    examples at every position 0 by design, and where no process holds all weights.
    """
    if not trainer.args.packing:
        return
    if trainer.args.packing_strategy == "wrapped":
        raise UserError(
            "sft.training.packing_strategy: wrapped cuts conversations anywhere and lets them attend to each other; "
            "leave it out (bfd keeps them whole and apart)"
        )
    model = trainer.accelerator.unwrap_model(trainer.model)
    attention = model.config._attn_implementation
    if "flash" in attention or weights_are_sharded(trainer):
        return
    if can_packed_examples_attend(model):
        raise UserError(
            f"sft.training.packing: with {model.config.model_type} and {attention} attention the examples packed into "
            "one row attend to each other; set packing: false, or attn_implementation: flash_attention_2 on a GPU"
        )


@torch.no_grad()
def can_packed_examples_attend(model: PreTrainedModel) -> bool:
    """Whether another first example changes the logits of the second one, in a row packed as TRL packs it."""
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    first_examples = (range(EXAMPLE_TOKENS), range(EXAMPLE_TOKENS, 2 * EXAMPLE_TOKENS))
    second_example = range(EXAMPLE_TOKENS)

    logits = []
    with evaluation_mode(model):
        for first_example in first_examples:
            row = {"input_ids": [*first_example, *second_example], "seq_lengths": [EXAMPLE_TOKENS, EXAMPLE_TOKENS]}
            batch = collate([row])
            batch.pop("labels")
            batch = {key: value.to(model.device) if torch.is_tensor(value) else value for key, value in batch.items()}
            outputs = model(**batch, use_cache=False)
            logits.append(outputs.logits[0, EXAMPLE_TOKENS:].float())

    change = (logits[0] - logits[1]).abs().max()
    return bool(change > MIN_LOGIT_CHANGE * logits[0].std())

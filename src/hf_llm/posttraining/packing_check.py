"""Several short conversations in one row, none of which sees another."""

import torch
from transformers import PreTrainedModel, Trainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from hf_llm.core.errors import UserError
from hf_llm.monitoring.callbacks.samples import weights_are_sharded

_LENGTH = 8  # tokens of each of the two examples of the trial
_LEAST = 1e-2  # a change of this share of the logits' spread is no rounding


def check_packing(trainer: Trainer) -> None:
    """Raise UserError where `packing` would let examples of one row attend to each other.

    The attention kernels of the model in hand are tried, but flash attention's (which cut at every position 0 by their
    design) and where no process holds the weights.
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
    if examples_leak(model):
        raise UserError(
            f"sft.training.packing: with {model.config.model_type} and {attention} attention the examples packed into "
            "one row attend to each other; set packing: false, or attn_implementation: flash_attention_2 on a GPU"
        )


@torch.no_grad()
def examples_leak(model: PreTrainedModel) -> bool:
    """Whether another first example changes the logits of the second one in a row packed as TRL packs it."""
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    training = model.training
    model.eval()
    logits = []
    for first in (range(_LENGTH), range(_LENGTH, 2 * _LENGTH)):
        row = {"input_ids": [*first, *range(_LENGTH)], "seq_lengths": [_LENGTH, _LENGTH]}
        batch = {key: value for key, value in collate([row]).items() if key != "labels"}
        batch = {key: value.to(model.device) if torch.is_tensor(value) else value for key, value in batch.items()}
        logits.append(model(**batch, use_cache=False).logits[0, _LENGTH:].float())
    model.train(training)
    return bool((logits[0] - logits[1]).abs().max() > _LEAST * logits[0].std())

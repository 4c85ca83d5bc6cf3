"""Gaps in texts, filled by a masked model (all at once) or by an encoder-decoder (its decoder writes them)."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_llm.data.tokens.corruption import put_back
from hf_llm.inference.generate import complete
from hf_llm.model.load import CAUSAL, MASKED, context_with, objective_of
from hf_llm.tokenization.sentinel_tokens import sentinel, sentinels_of


def write(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], max_new_tokens: int
) -> list[str]:
    """What a model of any objective makes of each prompt, greedily: a causal one goes on after it, any other gives the
    prompt with its gaps filled."""
    if objective_of(model.config) == CAUSAL:
        return complete(model, tokenizer, prompts, max_new_tokens, do_sample=False)
    return fill(model, tokenizer, prompts, max_new_tokens)


@torch.no_grad()
def fill(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], max_new_tokens: int
) -> list[str]:
    """Each text with the likeliest token in the place of each mask, or with what the model writes for each sentinel
    (`<extra_id_0>` ..., at most `max_new_tokens` together).

    A text without a gap gets one at its end. One too long for the context loses its end.
    """
    masked, training = objective_of(model.config) == MASKED, model.training
    gap = tokenizer.mask_token if masked else sentinel(0)
    batch = tokenizer(
        [text if gap in text else f"{text} {gap}" for text in texts],
        padding=True,
        truncation=True,
        max_length=context_with(model.config, tokenizer),
        return_tensors="pt",
    ).to(model.device)
    model.eval()
    try:
        filled = _unmasked(model, tokenizer, batch) if masked else _written(model, tokenizer, batch, max_new_tokens)
    finally:
        model.train(training)
    return tokenizer.batch_decode(filled, skip_special_tokens=True)


def _unmasked(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: dict) -> list[list[int]]:
    ids = batch["input_ids"]
    logits = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits
    return torch.where(ids == tokenizer.mask_token_id, logits.argmax(-1), ids).tolist()


def _written(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: dict, most: int) -> list[list[int]]:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    targets = model.generate(**inputs, max_new_tokens=most, do_sample=False).tolist()
    sentinels = sentinels_of(tokenizer)
    return [
        put_back(text, target, sentinels) for text, target in zip(batch["input_ids"].tolist(), targets, strict=True)
    ]

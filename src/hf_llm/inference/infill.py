"""Gaps in texts, filled by a masked model (all at once) or by an encoder-decoder (its decoder writes them)."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_llm.data.tokens.corruption import restore_spans
from hf_llm.inference.generate import complete_prompts, suppressed_ids
from hf_llm.model.load import CAUSAL, MASKED, context_length, find_objective
from hf_llm.tokenization.sentinel_tokens import require_sentinels, sentinel_token


def complete_or_infill(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], max_new_tokens: int
) -> list[str]:
    """Generate greedily from each prompt what the objective of the model allows: the completion by a causal model, the
    prompt with its gaps filled by any other."""
    if find_objective(model.config) == CAUSAL:
        return complete_prompts(model, tokenizer, prompts, max_new_tokens, do_sample=False)
    return infill_texts(model, tokenizer, prompts, max_new_tokens)


@torch.no_grad()
def infill_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], max_new_tokens: int
) -> list[str]:
    """Return each text with the likeliest token in the place of each mask, or with what the model writes for each
    sentinel (`<extra_id_0>` ..., at most `max_new_tokens` together).

    A text without a gap gets one at its end. One too long for the context loses its end.
    """
    is_masked_model = find_objective(model.config) == MASKED
    gap = tokenizer.mask_token if is_masked_model else sentinel_token(0)
    batch = tokenizer(
        [text if gap in text else f"{text} {gap}" for text in texts],
        padding=True,
        truncation=True,
        max_length=context_length(model.config, tokenizer),
        return_tensors="pt",
    ).to(model.device)

    was_training = model.training
    model.eval()
    try:
        if is_masked_model:
            filled = _fill_masks(model, tokenizer, batch)
        else:
            filled = _fill_spans(model, tokenizer, batch, max_new_tokens)
    finally:
        model.train(was_training)
    return tokenizer.batch_decode(filled, skip_special_tokens=True)


def _fill_masks(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: dict) -> list[list[int]]:
    input_ids = batch["input_ids"]  # B T
    logits = model(input_ids=input_ids, attention_mask=batch["attention_mask"]).logits  # B T V
    suppressed = suppressed_ids(model, tokenizer)
    if suppressed:
        logits[..., suppressed] = -torch.inf
    is_mask = input_ids == tokenizer.mask_token_id
    return torch.where(is_mask, logits.argmax(-1), input_ids).tolist()


def _fill_spans(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch: dict, max_new_tokens: int
) -> list[list[int]]:
    targets = model.generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=max_new_tokens,
        do_sample=False,
        suppress_tokens=suppressed_ids(model, tokenizer),
    ).tolist()
    sentinels = require_sentinels(tokenizer)
    texts = batch["input_ids"].tolist()
    return [restore_spans(text, target, sentinels) for text, target in zip(texts, targets, strict=True)]

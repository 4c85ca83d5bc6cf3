"""What a model consists of, and what a token costs: parameters and shapes by part, arithmetic per token."""

import re

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_llm.model.load import untrained

# The part of a model to which a parameter belongs, by the first pattern found in its name.
PARTS = {
    "norms": r"[nN]orm|(^|\.)ln_",
    "attention": r"attn|[aA]ttention",
    "MLP": r"mlp|feed_forward|DenseReluDense|intermediate|\d\.output\.|ffn|expert",
    "head": r"lm_head|score|^(cls\.)?predictions|^vocab_|^head|^decoder\.(weight|bias)",
    "embeddings": r"emb|wte|wpe|shared",
    "other": "",
}


def describe(model: PreTrainedModel) -> str:
    """A table of the parameters by part, with the shapes of one layer, the sums, and the arithmetic of a token."""
    parts = parameters_by_part(model)
    counts = {part: sum(parameter.numel() for _, parameter in parameters) for part, parameters in parts.items()}
    total = sum(counts.values())
    lines = [f"{type(model).__name__}: {model.config.num_hidden_layers} layers, {model.dtype}"]
    for part, parameters in parts.items():
        # The layers repeat themselves: a name's first parameter speaks for all.
        shapes = {name: "x".join(map(str, parameter.shape)) for name, parameter in reversed(parameters)}
        shown = ", ".join(f"{name} {shape}" for name, shape in reversed(shapes.items()))
        lines.append(f"  {part:<10}  {counts[part]:>14,}  {counts[part] / total:>6.1%}  {shown}")
    if not counts.get("head") and model.get_output_embeddings() is not None:
        lines.append(f"  {'head':<10}  {0:>14,}  {0:>6.1%}  tied to the embeddings")
    rest = total - counts.get("embeddings", 0) - counts.get("head", 0)
    lines.append(f"  {'total':<10}  {total:>14,}          {rest:,} without embeddings and head")
    context = getattr(model.config, "max_position_embeddings", None)
    if context:
        flops = flops_per_token(model, context)
        lines.append(f"  {flops:.2e} FLOPs to train on a token in a context of {context:,}")
    return "\n".join(lines)


def parameters_by_part(model: PreTrainedModel) -> dict[str, list[tuple[str, torch.nn.Parameter]]]:
    """Part -> its parameters with the last words of their names; parts without any are left out."""
    parts = {part: [] for part in PARTS}
    for name, parameter in model.named_parameters():
        part = next(part for part, pattern in PARTS.items() if re.search(pattern, name))
        short = name.removesuffix(".weight").rsplit(".", 1)[-1] if name.endswith(".weight") else name.rsplit(".", 1)[-1]
        parts[part].append((short, parameter))
    return {part: parameters for part, parameters in parts.items() if parameters}


def flops_per_token(model: PreTrainedModel | PreTrainedConfig, context: int) -> int:
    """FLOPs of one token's forward and backward pass, 6N + 12 H Q times the tokens seen in each layer (PaLM,
    https://arxiv.org/abs/2204.02311, appendix B). N counts the parameters a token multiplies: a tied embedding does, as
    the head; an untied one is looked up; of the experts only those chosen; a shared layer each time it is used. Without
    attention what a layer does beside its matrices is left out.
    """
    if isinstance(model, PreTrainedConfig):
        with torch.device("meta"):
            model = untrained(model)
    config, embedding, head = model.config, model.get_input_embeddings(), model.get_output_embeddings()
    if config.is_encoder_decoder:
        return _flops_of_both(model, context)
    multiplying = sum(parameter.numel() * uses(name, config) for name, parameter in model.named_parameters())
    if head is None or head.weight is not embedding.weight:
        multiplying -= embedding.weight.numel()
    heads = getattr(config, "num_attention_heads", 0)  # none in Mamba
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // max(1, heads)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    return round(6 * multiplying + 12 * heads * head_dim * sum(tokens_seen(kind, config, context) for kind in kinds))


# Of a window, by T5's span corruption: the encoder sees all but 15% and a sentinel for every 3 of those, the decoder
# those and the sentinels.
ENCODED, DECODED = 0.9, 0.2


def _flops_of_both(model: PreTrainedModel, context: int) -> int:
    """As `flops_per_token`, of an encoder-decoder: the mean over the tokens that either of the two goes through."""
    config, embedding, head = model.config, model.get_input_embeddings(), model.get_output_embeddings()
    encoded, decoded = ENCODED * context, DECODED * context
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    total = 0.0
    for name, parameter in model.named_parameters():
        by_encoder = "encoder." in name or re.search(r"EncDecAttention\.[kv]\.|encoder_attn\.[kv]_proj", name)
        total += 6 * parameter.numel() * uses(name, config) * (encoded if by_encoder else decoded)
    if head.weight is not embedding.weight:
        total -= 6 * embedding.weight.numel() * decoded
    layers = config.num_hidden_layers
    below = getattr(config, "num_decoder_layers", None) or getattr(config, "decoder_layers", layers)
    total += 12 * width * (layers * encoded**2 + below * (decoded**2 + decoded * encoded))
    return round(total / (encoded + decoded))


def uses(name: str, config: PreTrainedConfig) -> float:
    """How often a token multiplies by the parameter `name` on its way."""
    if re.search(r"embed_positions|\.wpe\.|position_embeddings|token_type_embeddings|relative_attention_bias", name):
        return 0
    groups = getattr(config, "num_hidden_groups", None)
    times = config.num_hidden_layers / groups if groups and "layers." in name else 1
    if ".experts." in name:
        experts = next(filter(None, (getattr(config, f"num_{key}", None) for key in ("experts", "local_experts"))))
        return times * config.num_experts_per_tok / experts
    return times


def tokens_seen(kind: str, config: PreTrainedConfig, context: int) -> float:
    """How many tokens of a `context` a token attends to in a layer of this kind, at most."""
    window = getattr(config, "sliding_window", None) or context
    return min(
        context,
        {
            "sliding_attention": lambda: window,
            "sink_attention": lambda: window + config.num_sink_tokens,
            "local_global_attention": lambda: window + context / config.global_attention_every,
            "strided_attention": lambda: 2 * config.sparse_block_size + context / config.sparse_stride,
        }.get(kind, lambda: context)(),
    )

"""What a model consists of, and what a token costs: parameters and shapes by part, arithmetic per token."""

import re

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

# The part of a model to which a parameter belongs, by the first pattern that its name holds.
PARTS = (
    ("norms", r"norm|(^|\.)ln_"),
    ("attention", r"attn|attention"),
    ("MLP", r"mlp|feed_forward|\.fc\d|DenseReluDense"),
    ("head", r"lm_head|score"),
    ("embeddings", r"emb|wte|wpe|shared"),
    ("other", ""),
)


def describe(model: PreTrainedModel) -> str:
    """A table of the parameters by part with the shapes of one layer, their sums, and the FLOPs of training a token."""
    counts, shapes = dict.fromkeys((name for name, _ in PARTS), 0), {name: {} for name, _ in PARTS}
    for name, parameter in model.named_parameters():
        part = next(part for part, pattern in PARTS if re.search(pattern, name))
        counts[part] += parameter.numel()
        short = name.removesuffix(".weight").rsplit(".", 1)[-1]
        shapes[part].setdefault(short, "x".join(map(str, parameter.shape)))
    config, total = model.config, sum(counts.values())
    tied = " (tied to the embeddings)" if config.tie_word_embeddings and not counts["head"] else ""
    rows = [
        (part, f"{count:,}", f"{count / total:.1%}", ", ".join(f"{key} {shape}" for key, shape in shapes[part].items()))
        for part, count in counts.items()
        if count or part == "head"
    ]
    rows = [(*row[:3], row[3] or tied.strip()) for row in rows]
    rows.append(("total", f"{total:,}", "", f"{total - counts['embeddings'] - counts['head']:,} without embeddings"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [f"{type(model).__name__}, {config.num_hidden_layers} layers, {str(model.dtype).removeprefix('torch.')}"]
    lines += [f"  {part:<{widths[0]}}  {n:>{widths[1]}}  {share:>{widths[2]}}  {rest}" for part, n, share, rest in rows]
    context = getattr(config, "max_position_embeddings", None) or 0
    lines.append(f"  {flops_per_token(model, context) / 1e9:,.3g} GFLOPs to train on one token of a context of {context:,}")
    return "\n".join(lines)


def flops_per_token(model: PreTrainedModel | PreTrainedConfig, context: int) -> int:
    """FLOPs of one token's forward and backward pass, 6N + 12 L H Q T (PaLM, https://arxiv.org/abs/2204.02311,
    appendix B). N counts the parameters that multiply: a tied embedding does, as the head; an untied one is looked up.
    """
    if isinstance(model, PreTrainedConfig):
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(model)
    config = model.config
    multiplying = sum(parameter.numel() for parameter in model.parameters())
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings()
    if head is not None and head.weight is not embedding:
        multiplying -= embedding.numel()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return 6 * multiplying + 12 * config.num_hidden_layers * heads * head_dim * context

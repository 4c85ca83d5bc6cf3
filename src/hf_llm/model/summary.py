"""What a model consists of, and what a token costs: parameters and shapes by part, arithmetic per token."""

import re

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_llm.core.console import terminal_width
from hf_llm.core.help_format import fill_words
from hf_llm.model.load import build_untrained_model

# The part of a model to which a parameter belongs, by the first pattern that its name contains.
PARTS = {
    "norms": r"[nN]orm|(^|\.)ln_",
    "attention": r"attn|[aA]ttention",
    "MLP": r"mlp|feed_forward|DenseReluDense|intermediate|\d\.output\.|ffn|expert",
    "head": r"lm_head|score|^(cls\.)?predictions|^vocab_|^head|^decoder\.(weight|bias)",
    "embeddings": r"emb|wte|wpe|shared",
    "other": "",
}

# What classes of transformers call the number of experts, and of those that a token goes to.
EXPERT_KEYS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
CHOSEN_EXPERT_KEYS = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_top_k", "moe_k", "top_k_experts")

# Proportions beyond which the summary says that a size is odd.
MLP_RATIO = (1.0, 8.0)  # intermediate size to hidden size
HEAD_DIM = (8, 256)
MAX_VOCABULARY_SHARE = 0.8

# Parameters that a token looks up or that act on attention scores, rather than matrices that it multiplies by.
NOT_MULTIPLIED = r"embed_positions|\.wpe\.|position_embeddings|token_type_embeddings|relative_attention_bias"

# Parameters of a decoder that act on the encoder's output, by their names in T5 and BART.
CROSS_ATTENTION_INPUTS = r"EncDecAttention\.[kv]\.|encoder_attn\.[kv]_proj"

# Share of a window, by T5's span corruption: the encoder sees all but 15% and a sentinel for every 3 of those, the
# decoder those and the sentinels.
ENCODER_SHARE = 0.9
DECODER_SHARE = 0.2


def summarize_model(model: PreTrainedModel) -> str:
    """Return a table of the parameters by part, with the shapes of one layer, the sums, and the arithmetic of a
    token."""
    parts = parameters_by_part(model)
    counts = {}
    for part, parameters in parts.items():
        counts[part] = sum(parameter.numel() for _, parameter in parameters)
    total = sum(counts.values())

    lines = [f"{type(model).__name__}: {model.config.num_hidden_layers} layers, {model.dtype}"]
    for part, parameters in parts.items():
        lines.append(_part_line(part, counts[part], counts[part] / total, _list_shapes(parameters)))
    if not counts.get("head") and model.get_output_embeddings() is not None:
        lines.append(_part_line("head", 0, 0, "tied to the embeddings"))
    inner = total - counts.get("embeddings", 0) - counts.get("head", 0)
    lines.append(f"  {'total':<10}  {total:>14,}          {inner:,} without embeddings and head")

    context = getattr(model.config, "max_position_embeddings", None)
    if context:
        flops = flops_per_token(model, context)
        lines.append(f"  {flops:.2e} FLOPs to train on a token in a context of {context:,}")
    lines += [f"  odd: {remark}" for remark in find_odd_proportions(model.config, counts)]
    return "\n".join(lines)


def find_odd_proportions(config: PreTrainedConfig, counts: dict[str, int]) -> list[str]:
    """Describe sizes that do not go together as they usually do. `counts` are the parameters by part."""
    remarks = []
    first_layer = config.per_layer_config[0]
    width = getattr(first_layer, "hidden_size", None)
    intermediate = getattr(first_layer, "intermediate_size", None)
    if width and isinstance(intermediate, int) and not MLP_RATIO[0] <= intermediate / width <= MLP_RATIO[1]:
        remarks.append(
            f"the MLP is {intermediate / width:.1f} times as wide as the model; 2 to 4 times is usual "
            "(intermediate_size)"
        )
    heads = getattr(first_layer, "num_attention_heads", None)
    if width and heads:
        head_dim = getattr(first_layer, "head_dim", None) or width // heads
        if not HEAD_DIM[0] <= head_dim <= HEAD_DIM[1]:
            remarks.append(f"a head has {head_dim} numbers; 32 to 128 are usual (num_attention_heads)")
    vocabulary_share = (counts.get("embeddings", 0) + counts.get("head", 0)) / sum(counts.values())
    if vocabulary_share > MAX_VOCABULARY_SHARE:
        remarks.append(
            f"{vocabulary_share:.0%} of the parameters are the vocabulary's; a smaller one (tokenizer.vocab_size) "
            "leaves more to the layers"
        )
    return remarks


def _part_line(part: str, count: int, share: float, remark: str) -> str:
    line = f"  {part:<10}  {count:>14,}  {share:>6.1%}  "
    return fill_words(remark, terminal_width(), indent=line, further_indent=" " * len(line))


def _list_shapes(parameters: list[tuple[str, torch.nn.Parameter]]) -> str:
    # Layers repeat each other, so every name is shown once, where it comes last, with the shape it has first.
    shapes = {}
    for name, parameter in reversed(parameters):
        shapes[name] = "x".join(str(size) for size in parameter.shape)
    return ", ".join(f"{name} {shape}" for name, shape in reversed(shapes.items()))


def parameters_by_part(model: PreTrainedModel) -> dict[str, list[tuple[str, torch.nn.Parameter]]]:
    """Return part -> its parameters with the last words of their names, without parts that have none."""
    parts = {part: [] for part in PARTS}
    for name, parameter in model.named_parameters():
        part = next(part for part, pattern in PARTS.items() if re.search(pattern, name))
        short_name = name.removesuffix(".weight").rsplit(".", 1)[-1]
        parts[part].append((short_name, parameter))
    return {part: parameters for part, parameters in parts.items() if parameters}


def flops_per_token(model: PreTrainedModel | PreTrainedConfig, context: int) -> int:
    """Return the FLOPs of one token's forward and backward pass, 6N + 12 H Q times the tokens seen in each layer (PaLM,
    https://arxiv.org/abs/2204.02311, appendix B).

    N counts the parameters that a token multiplies by: a tied embedding, as the head; not an untied one, which is
    looked up; of the experts only those chosen; a shared layer each time it is used. Without attention (Mamba) what a
    layer does beside its matrices is not counted.
    """
    if isinstance(model, PreTrainedConfig):
        with torch.device("meta"):
            model = build_untrained_model(model)
    config = model.config
    if config.is_encoder_decoder:
        return _encoder_decoder_flops(model, context)

    multiplied = sum(parameter.numel() * count_uses(name, config) for name, parameter in model.named_parameters())
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings().weight
    assert isinstance(embedding, torch.Tensor)
    if head is None or head.weight is not embedding:
        multiplied -= embedding.numel()

    layer_types = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    attention = 0.0
    for kind, layer in zip(layer_types, config.per_layer_config, strict=False):
        attention += attention_width(layer) * visible_tokens(kind, layer, context)
    return round(6 * multiplied + 12 * attention)


def attention_width(config: PreTrainedConfig) -> int:
    """Return the numbers of all heads of a layer together; 0 without attention."""
    heads = getattr(config, "num_attention_heads", 0)  # none in Mamba
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // max(1, heads or 0)
    return (heads or 0) * head_dim


def _encoder_decoder_flops(model: PreTrainedModel, context: int) -> int:
    """Return the same for an encoder-decoder: the mean over the tokens that either of the two processes."""
    config = model.config
    encoded = ENCODER_SHARE * context
    decoded = DECODER_SHARE * context

    total = 0.0
    for name, parameter in model.named_parameters():
        acts_on_encoded = "encoder." in name or re.search(CROSS_ATTENTION_INPUTS, name)
        tokens = encoded if acts_on_encoded else decoded
        total += 6 * parameter.numel() * count_uses(name, config) * tokens
    head = model.get_output_embeddings()
    embedding = model.get_input_embeddings().weight
    assert head is not None and isinstance(embedding, torch.Tensor)
    if head.weight is not embedding:
        total -= 6 * embedding.numel() * decoded

    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    encoder_layers = config.num_hidden_layers
    decoder_layers = getattr(config, "num_decoder_layers", None) or getattr(config, "decoder_layers", encoder_layers)
    encoder_pairs = encoder_layers * encoded**2
    decoder_pairs = decoder_layers * (decoded**2 + decoded * encoded)
    total += 12 * width * (encoder_pairs + decoder_pairs)
    return round(total / (encoded + decoded))


def count_uses(name: str, config: PreTrainedConfig) -> float:
    """Return how often a token multiplies by the parameter `name`, on average over the tokens."""
    if re.search(NOT_MULTIPLIED, name):
        return 0
    times = 1
    groups = getattr(config, "num_hidden_groups", None)
    if groups and "layers." in name:
        times = config.num_hidden_layers / groups
    if ".experts." in name:
        experts = find_setting(config, EXPERT_KEYS)
        chosen = find_setting(config, CHOSEN_EXPERT_KEYS)
        if experts and chosen:
            return times * chosen / experts
    return times


def find_setting(config: PreTrainedConfig, keys: tuple[str, ...]) -> int | None:
    """Return the first of these settings that a config has, itself or in its section for the MLP; None without one."""
    for part in (config, getattr(config, "ffn_config", None)):
        for key in keys:
            value = getattr(part, key, None)
            if value:
                return value
    return None


def visible_tokens(kind: str, config: PreTrainedConfig, context: int) -> float:
    """Return how many tokens of a `context` a token attends to in a layer of this kind, at most."""
    window = getattr(config, "sliding_window", None) or context
    visible = context
    if kind == "sliding_attention":
        visible = window
    elif kind == "sink_attention":
        visible = window + config.num_sink_tokens
    elif kind == "local_global_attention":
        visible = window + context / config.global_attention_every
    elif kind == "strided_attention":
        visible = 2 * config.sparse_block_size + context / config.sparse_stride
    return min(context, visible)

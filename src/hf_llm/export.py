"""Write a model as one of a stock architecture, which opens without hf_llm and without trust_remote_code.

    python -m hf_llm.export runs/quickstart/dpo --output exported/quickstart

The architecture is the one that the model is weight for weight (docs/architecture.md), by default a Qwen3, so vLLM,
SGLang, llama.cpp and Ollama run it as such. The export is loaded back, and counts as done when its logits and greedy
tokens are the original's.
"""

import argparse
import shutil
from pathlib import Path

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from hf_llm.core.errors import UserError, command
from hf_llm.model.configuration_hf_llm import STOCK, HfLlmConfig
from hf_llm.model.load import load_model, load_tokenizer

TOLERANCE = 1e-5  # of logits in float32, where the largest is more than 1 of that one

# How stock tensors are called where they are called otherwise: first match of ours -> theirs.
RENAMED = {
    "starcoder2": {"mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"},
    "gpt2": {
        "model.embed_tokens": "transformer.wte",
        "model.embed_positions": "transformer.wpe",
        "model.norm": "transformer.ln_f",
        "model.layers": "transformer.h",
        "input_layernorm": "ln_1",
        "post_attention_layernorm": "ln_2",
        "self_attn.o_proj": "attn.c_proj",
        "mlp.up_proj": "mlp.c_fc",
        "mlp.down_proj": "mlp.c_proj",
    },
}


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a model folder or Hub id")
    parser.add_argument("--to", choices=list(STOCK), help="the architecture to write; left out, the one that fits")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    arguments = parser.parse_args(argv)
    name = export(arguments.model, arguments.output, arguments.to)
    print(f"{arguments.output}: {name}, same logits (to {TOLERANCE}) and same greedy tokens as the original")


def export(path: Path | str, output: Path, to: str | None = None) -> str:
    """Write the model of `path` to the new folder `output` as a `to` of transformers, by default the one it is weight
    for weight, and check the result against the original. Returns the name of the class.

    Raises UserError for a model that is no hf_llm causal language model, switches that no stock class has, a folder in
    use, or a result that differs.
    """
    if output.exists() and any(output.iterdir()):
        raise UserError(f"--output: {output} is not empty; name a new folder")
    model, tokenizer = load_model(path, dtype="auto").eval(), load_tokenizer(path)
    target = check_exportable(model.config, path, to)
    exported = AutoModelForCausalLM.from_config(stock_config(model.config, target))
    exported.load_state_dict(stock_tensors(model, exported), assign=True)
    exported.tie_weights()
    exported.generation_config = model.generation_config
    exported.save_pretrained(output)
    tokenizer.save_pretrained(output)
    try:
        check_equal(model, AutoModelForCausalLM.from_pretrained(output, dtype="auto").eval())
    except UserError:
        shutil.rmtree(output)
        raise
    return type(exported).__name__


def check_exportable(config: PreTrainedConfig, path: Path | str, to: str | None) -> str:
    """The model_type to write. UserError for a model that is not ours, or that no stock class equals."""
    if config.model_type != "hf_llm":
        raise UserError(
            f"{path} is a {config.model_type}, which other programs open as it is; only hf_llm models need an export"
        )
    target = to or config.exports_to
    if target not in STOCK or config.obstacles(target):
        obstacles = ", ".join(config.obstacles(to))
        raise UserError(f"{path}: {obstacles} cannot be written as {to or 'any class of transformers'}")
    return target


def stock_config(config: HfLlmConfig, target: str) -> PreTrainedConfig:
    """The `target` configuration that says the same as `config`."""
    cls = CONFIG_MAPPING[target]
    ours = {key: getattr(config, key) for key in HfLlmConfig.__annotations__ if key in cls.__dataclass_fields__}
    ours |= {"max_position_embeddings": config.max_position_embeddings, "dtype": config.dtype}
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        ours["head_dim"] = config.head_dim
    if "use_sliding_window" in cls.__dataclass_fields__:
        ours["use_sliding_window"] = config.sliding_window is not None
    return cls(**ours | particulars(config, target))


def particulars(config: HfLlmConfig, target: str) -> dict:
    """What a stock configuration calls otherwise, or asks for beside what ours has."""
    sizes = {"hidden_size": config.hidden_size, "num_attention_heads": config.num_attention_heads}
    return {
        "smollm3": {"no_rope_layers": [0] * config.num_hidden_layers},
        "starcoder2": {
            "norm_epsilon": config.rms_norm_eps,
            "use_bias": True,
            "residual_dropout": config.resid_pdrop,
            "embedding_dropout": config.embd_pdrop,
        },
        "gpt2": {
            **sizes,
            "num_hidden_layers": config.num_hidden_layers,
            "n_inner": config.intermediate_size,
            "activation_function": config.hidden_act,
            "layer_norm_epsilon": config.rms_norm_eps,
            "attn_pdrop": config.attention_dropout,
        },
        "mixtral": {"num_local_experts": config.num_experts, "intermediate_size": config.moe_intermediate_size},
        "dots1": {"n_routed_experts": config.num_experts},
    }.get(target, {})


def stock_tensors(model: PreTrainedModel, exported: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The tensors of `model` under the names and in the shapes of `exported`; layers that share theirs get copies, and
    biases that only `exported` has are zero."""
    found = {}
    for name, tensor in layers_apart(model).items():
        for ours, theirs in RENAMED.get(exported.config.model_type, {}).items():
            name = name.replace(ours, theirs)
        found[name] = tensor
    wanted = exported.state_dict()
    if exported.config.model_type == "gpt2":
        found = as_gpt2(found, wanted)
    zeros = {name: torch.zeros_like(x) for name, x in wanted.items() if name not in found and name.endswith(".bias")}
    return {**found, **{name: tensor.to(model.dtype) for name, tensor in zeros.items()}}


def layers_apart(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The state dict with tensors of its own for every layer."""
    layers, own = model.config.num_hidden_layers, len(model.model.layers)
    rest = {name: x for name, x in model.state_dict().items() if not name.startswith("model.layers.")}
    for number in range(layers):
        of_layer = model.model.layers[number * own // layers].state_dict()
        rest |= {f"model.layers.{number}.{name}": tensor.clone() for name, tensor in of_layer.items()}
    return rest


def as_gpt2(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """GPT-2 keeps query, key and value in one matrix, and its matrices lie on their side."""
    result = {}
    for name in wanted:
        if ".attn.c_attn." in name:
            parts = [name.replace("attn.c_attn", f"self_attn.{part}_proj") for part in "qkv"]
            if parts[0] in found:
                result[name] = torch.cat([found[part] for part in parts])
        elif name in found:
            result[name] = found[name]
    sideways = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
    return {name: x.T.contiguous() if name.endswith(sideways) else x for name, x in result.items()}


@torch.no_grad()
def check_equal(model: PreTrainedModel, exported: PreTrainedModel) -> None:
    """Raise UserError unless both models give the same logits and the same greedy tokens, in float32."""
    model, exported = model.float(), exported.float()
    context, vocabulary = model.config.max_position_embeddings, model.config.vocab_size
    tokens = torch.arange(min(64, max(1, context // 2)))[None] * 7919 % vocabulary
    logits = model(tokens).logits
    difference = (logits - exported(tokens).logits).abs().max().item()
    if not difference <= TOLERANCE * max(1.0, logits.abs().max().item()):
        raise UserError(f"the exported model's logits differ by {difference:.2g}; the export was deleted")
    greedy = {"max_new_tokens": min(16, context // 2), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    mask = torch.ones_like(tokens)
    if not torch.equal(*(m.generate(tokens, attention_mask=mask, **greedy) for m in (model, exported))):
        raise UserError("the exported model generates other tokens; the export was deleted")


if __name__ == "__main__":
    main()

"""Write a model as one of a stock architecture, which opens without hf_llm and without trust_remote_code.

    python -m hf_llm.export runs/quickstart/dpo    # writes runs/quickstart/dpo-export
    python -m hf_llm.export runs/quickstart/dpo --output exported/quickstart

The architecture is the one that the model is weight for weight (docs/architecture.md), by default a Qwen3, so vLLM,
SGLang, llama.cpp and Ollama run it as such. The export is loaded back, and counts as done when its logits and greedy
tokens are the original's.
"""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm.core.command_line import CommandParser
from hf_llm.core.errors import UserError, command
from hf_llm.core.manifest import apply_umask
from hf_llm.pipeline.find_model import default_output, find_model

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from hf_llm.model.configuration_hf_llm import HfLlmConfig


TOLERANCE = 1e-5  # the largest difference of float32 logits, relative to the largest logit where that is above 1
MAX_TOKENS_COMPARED = 64
MAX_TOKENS_GENERATED = 16

# The keys of hf_llm.model.configuration_hf_llm.STOCK_CLASSES, whose import takes seconds.
MODEL_TYPES = (
    "qwen3", "llama", "mistral", "qwen2", "arcee", "smollm3", "starcoder2", "gpt2", "qwen3_moe", "mixtral", "dots1",
)  # fmt: skip

# Fields of our configuration that a stock configuration calls otherwise: model_type -> our name -> its name.
RENAMED_FIELDS = {
    "starcoder2": {
        "rms_norm_eps": "norm_epsilon",
        "resid_pdrop": "residual_dropout",
        "embd_pdrop": "embedding_dropout",
    },
    "gpt2": {
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
        "hidden_act": "activation_function",
        "rms_norm_eps": "layer_norm_epsilon",
        "attention_dropout": "attn_pdrop",
    },
    # The width of an expert comes after intermediate_size in KEPT_AT_EXPORT, so it is the one that is written.
    "mixtral": {"num_experts": "num_local_experts", "moe_intermediate_size": "intermediate_size"},
    "dots1": {"num_experts": "n_routed_experts"},
}

# Parts of our tensors' names that a stock class calls otherwise: model_type -> our name -> its name.
RENAMED_TENSORS = {
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

# GPT-2 stores these matrices transposed, as (inputs, outputs).
GPT2_TRANSPOSED = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("model", help="a model folder or Hub id; of a run or a recipe, its last model")
    parser.add_argument("--to", choices=MODEL_TYPES, help="the architecture to write; by default the one that fits")
    parser.add_argument("--output", type=Path, help="a new folder; by default <model>-export")
    arguments = parser.parse_args(argv)

    model = find_model(arguments.model)
    output = arguments.output or default_output(model, "export")
    class_name = export_model(model, output, arguments.to)
    print(f"{output}: {class_name}, same logits (to {TOLERANCE}) and same greedy tokens as the original")


def export_model(path: Path | str, output: Path, to: str | None = None) -> str:
    """Write the model of `path` to the new folder `output` as a `to` of transformers, by default the one it is weight
    for weight, and check the result against the original. Return the name of the class.

    Raises UserError for a model that is not an hf_llm causal language model, switches that no stock class has, a folder
    in use, or a result that differs.
    """
    from transformers import AutoModelForCausalLM

    from hf_llm.inference.generate import set_stop_tokens
    from hf_llm.model.adapters import is_adapter
    from hf_llm.model.load import load_model, load_tokenizer

    if output.exists() and any(output.iterdir()):
        raise UserError(f"--output: {output} is not empty; name a new folder")
    model = load_model(path, dtype="auto").eval()
    tokenizer = load_tokenizer(path)
    if is_adapter(path):
        model = set_stop_tokens(model, tokenizer)  # the base's own do not end a turn
    model_type = choose_stock_class(model.config, path, to)

    exported = AutoModelForCausalLM.from_config(build_stock_config(model.config, model_type))
    exported.load_state_dict(convert_tensors(model, exported), assign=True)
    exported.tie_weights()
    exported.generation_config = model.generation_config
    exported.save_pretrained(output)
    tokenizer.save_pretrained(output)
    apply_umask(output)

    try:
        check_equal(model, AutoModelForCausalLM.from_pretrained(output, dtype="auto").eval())
    except UserError:
        shutil.rmtree(output)
        raise
    return type(exported).__name__


def choose_stock_class(config: "PreTrainedConfig", path: Path | str, to: str | None) -> str:
    """Return the model_type to write.

    Raises UserError for a model that is not ours, or that no stock class (or not the class `to`) equals.
    """
    from hf_llm.model.configuration_hf_llm import STOCK_CLASSES

    if config.model_type != "hf_llm":
        raise UserError(
            f"{path} is a {config.model_type}, which other programs open as it is; only hf_llm models need an export"
        )
    model_type = to or config.exports_to
    if model_type not in STOCK_CLASSES or config.export_obstacles(model_type):
        obstacles = ", ".join(config.export_obstacles(to))
        raise UserError(f"{path}: {obstacles} cannot be written as {to or 'any class of transformers'}")
    return model_type


def build_stock_config(config: "HfLlmConfig", model_type: str) -> "PreTrainedConfig":
    """Build the `model_type` configuration that describes the same model as `config`."""
    from transformers import CONFIG_MAPPING

    from hf_llm.model.configuration_hf_llm import FIXED_AT_EXPORT, KEPT_AT_EXPORT

    cls = CONFIG_MAPPING[model_type]
    renamed = RENAMED_FIELDS.get(model_type, {})
    settings = {"dtype": config.dtype}
    for field in (*KEPT_AT_EXPORT, *FIXED_AT_EXPORT):
        name = renamed.get(field, field)
        if name in cls.__dataclass_fields__:
            settings[name] = getattr(config, field)

    # Settings that have no counterpart among our fields.
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        settings["head_dim"] = config.head_dim  # read even where a class has no such field
    if "use_sliding_window" in cls.__dataclass_fields__:
        settings["use_sliding_window"] = config.sliding_window is not None
    if model_type == "smollm3":
        settings["no_rope_layers"] = [0] * config.num_hidden_layers  # 0 is a layer without rotary positions
    if model_type == "starcoder2":
        settings["use_bias"] = True
    return cls(**settings)


def convert_tensors(model: "PreTrainedModel", exported: "PreTrainedModel") -> "dict[str, torch.Tensor]":
    """Return the tensors of `model` under the names and in the shapes of `exported`.

    Layers that share theirs get copies, and biases that only `exported` has are zero.
    """
    import torch

    renamed = RENAMED_TENSORS.get(exported.config.model_type, {})
    tensors = {}
    for name, tensor in copy_shared_layers(model).items():
        for our_name, their_name in renamed.items():
            name = name.replace(our_name, their_name)
        tensors[name] = tensor

    expected = exported.state_dict()
    if exported.config.model_type == "gpt2":
        tensors = convert_to_gpt2(tensors, list(expected))
    for name, tensor in expected.items():
        if name not in tensors and name.endswith(".bias"):
            tensors[name] = torch.zeros_like(tensor).to(model.dtype)
    return tensors


def copy_shared_layers(model: "PreTrainedModel") -> "dict[str, torch.Tensor]":
    """Return the state dict with separate tensors for every layer."""
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("model.layers.")}
    num_layers = model.config.num_hidden_layers
    num_groups = len(model.model.layers)
    for layer_idx in range(num_layers):
        layer = model.model.layers[layer_idx * num_groups // num_layers]
        for name, tensor in layer.state_dict().items():
            tensors[f"model.layers.{layer_idx}.{name}"] = tensor.clone()
    return tensors


def convert_to_gpt2(tensors: "dict[str, torch.Tensor]", expected_names: list[str]) -> "dict[str, torch.Tensor]":
    """Join query, key and value into one matrix (`c_attn`), and transpose the matrices that GPT-2 stores so."""
    import torch

    converted = {}
    for name in expected_names:
        if ".attn.c_attn." in name:
            part_names = [name.replace("attn.c_attn", f"self_attn.{part}_proj") for part in ("q", "k", "v")]
            if part_names[0] in tensors:  # not a bias that our model lacks
                converted[name] = torch.cat([tensors[part_name] for part_name in part_names])
        elif name in tensors:
            converted[name] = tensors[name]

    for name in converted:
        if name.endswith(GPT2_TRANSPOSED):
            converted[name] = converted[name].T.contiguous()
    return converted


def check_equal(model: "PreTrainedModel", exported: "PreTrainedModel") -> None:
    """Raise UserError unless both models give the same logits and the same greedy tokens, in float32."""
    import torch

    from hf_llm.model.adapters import largest_logit_difference, probe_tokens

    model = model.float()
    exported = exported.float()
    context = model.config.max_position_embeddings
    tokens = probe_tokens(model.config.vocab_size, context, MAX_TOKENS_COMPARED)

    difference, scale = largest_logit_difference(model, exported, tokens)
    if not difference <= TOLERANCE * max(1.0, scale):  # NaN is a difference too
        raise UserError(f"the exported model's logits differ by {difference:.2g}; the export was deleted")

    settings = {
        "attention_mask": torch.ones_like(tokens),
        "max_new_tokens": min(MAX_TOKENS_GENERATED, context // 2),
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 0,
    }
    if not torch.equal(model.generate(tokens, **settings), exported.generate(tokens, **settings)):
        raise UserError("the exported model generates other tokens; the export was deleted")


if __name__ == "__main__":
    main()

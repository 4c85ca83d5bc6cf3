"""Import nanoGPT, nanochat and litgpt from folders of their repositories, and build their models at given sizes.

The sizes have the names of transformers' config. Each model is the peer's own architecture: nanoGPT has learned
positions, LayerNorm and GELU; nanochat squared ReLU, value embeddings and an untied head, with full attention in every
layer (as its script for CPUs); litgpt rotary positions, RMSNorm and SwiGLU, as in its recipe for TinyStories. Layers,
width, heads, vocabulary and context are equal, and the matrices of an MLP have about as many elements.

Where a package is missing that a peer imports and the benchmarks do not run (the trainer of litgpt, the tokenizer of
nanochat), an empty module takes its place, and a line says so.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

# What the peers import and no benchmark calls.
UNUSED_PACKAGES = ("lightning", "lightning_utilities", "torchmetrics", "rustbpe", "tiktoken")


class EmptyModule(ModuleType):
    """A module in which every name is an empty class, whose objects are false."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {"__init__": lambda self, *args, **kwargs: None, "__bool__": lambda self: False})


class EmptyModuleFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an empty module for everything in `packages`."""

    def __init__(self, packages: list[str]):
        self.packages = packages

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name.partition(".")[0] not in self.packages:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return EmptyModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def replace_missing_packages() -> None:
    """Let the peers' imports pass where packages are missing that are not used here, and print which."""
    missing = [name for name in UNUSED_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        print(f"not installed, and not used by what is measured: {', '.join(missing)}", file=sys.stderr)
        sys.meta_path.append(EmptyModuleFinder(missing))


def check_folder(folder: str, file: str) -> Path:
    """Return the folder of a repository. Exits where it does not hold `file`."""
    if not Path(folder, file).is_file():
        sys.exit(f"{folder} has no {file}; give the folder of a clone of the repository")
    return Path(folder).resolve()


def build_nanogpt(folder: str, sizes: dict[str, int]) -> nn.Module:
    """Build nanoGPT's model as its train.py does: no dropout, no biases."""
    path = check_folder(folder, "model.py") / "model.py"
    spec = importlib.util.spec_from_file_location("nanogpt_model", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    config = module.GPTConfig(
        block_size=sizes["max_position_embeddings"],
        vocab_size=sizes["vocab_size"],
        n_layer=sizes["num_hidden_layers"],
        n_head=sizes["num_attention_heads"],
        n_embd=sizes["hidden_size"],
        dropout=0.0,
        bias=False,
    )
    return module.GPT(config)


def build_nanochat(folder: str, sizes: dict[str, int]) -> nn.Module:
    """Build nanochat's model as its base_train.py does, in float32, its choice on a CPU."""
    sys.path.insert(0, str(check_folder(folder, "nanochat/gpt.py")))
    from nanochat.gpt import GPT, GPTConfig

    config = GPTConfig(
        sequence_len=sizes["max_position_embeddings"],
        vocab_size=sizes["vocab_size"],
        n_layer=sizes["num_hidden_layers"],
        n_head=sizes["num_attention_heads"],
        n_kv_head=sizes["num_key_value_heads"],
        n_embd=sizes["hidden_size"],
        window_pattern="L",
    )
    with torch.device("meta"):
        model = GPT(config)
    model.to_empty(device="cpu")
    model.init_weights()
    return model


def build_litgpt(folder: str, sizes: dict[str, int]) -> nn.Module:
    """Build litgpt's model, tied, with the architecture of its config_hub/pretrain/tinystories.yaml."""
    # Without the package's own __init__, which imports its whole interface.
    package = ModuleType("litgpt")
    package.__path__ = [str(check_folder(folder, "litgpt/model.py") / "litgpt")]
    sys.modules["litgpt"] = package
    from litgpt.config import Config
    from litgpt.model import GPT

    config = Config(
        block_size=sizes["max_position_embeddings"],
        padded_vocab_size=sizes["vocab_size"],
        n_layer=sizes["num_hidden_layers"],
        n_head=sizes["num_attention_heads"],
        n_query_groups=sizes["num_key_value_heads"],
        n_embd=sizes["hidden_size"],
        intermediate_size=sizes["intermediate_size"],
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
    )
    model = GPT(config)
    model.apply(model._init_weights)
    model.transformer.wte.weight = model.lm_head.weight
    return model

"""LoRA adapters on disk: read, attached to their base model, and merged into it.

An adapter folder holds `adapter_config.json`, which names the base model, and the adapter's weights.
"""

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import PreTrainedModel

from hf_llm.core.errors import UserError
from hf_llm.core.format import one_line

if TYPE_CHECKING:
    from peft import PeftModel

CONFIG_FILE = "adapter_config.json"
WEIGHT_FILES = ("adapter_model.safetensors", "adapter_model.bin")

# What PEFT raises for a folder that is not an adapter of the model it is attached to.
INVALID_ADAPTER = (
    OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError, ImportError, SafetensorError,
    NotImplementedError,
)  # fmt: skip

# Two copies of one matrix are taken for the same where they differ by rounding alone.
ROUNDING = 1e-6


def is_adapter(path: Path | str) -> bool:
    """Whether a folder holds a LoRA adapter rather than a whole model."""
    return (Path(path) / CONFIG_FILE).exists()


def read_adapter_config(path: Path | str) -> dict[str, Any]:
    """Return the settings of the adapter at `path`. Raises UserError where they cannot be parsed."""
    file = Path(path) / CONFIG_FILE
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be parsed as JSON: {one_line(error)}; copy the adapter again") from None
    if not isinstance(settings, dict):
        raise UserError(f"{file} holds no settings; copy the adapter again")
    return settings


def scores_texts(path: Path | str) -> bool:
    """Whether the adapter at `path` is that of a reward model."""
    return read_adapter_config(path).get("task_type") == "SEQ_CLS"


def read_adapter_base(path: Path | str) -> str:
    """Return the folder or Hub id of the model below the adapter at `path`.

    Raises UserError for a config that cannot be parsed or does not name a base, or where the base is the adapter.
    """
    file = Path(path) / CONFIG_FILE
    base = read_adapter_config(path).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise UserError(f"{file} does not name the base model; write its folder or Hub id as base_model_name_or_path")
    if Path(base).exists() and Path(base).resolve() == Path(path).resolve():
        raise UserError(f"{file}: base_model_name_or_path is the adapter's own folder; name the model below it")
    return base


def attach_adapter(base: PreTrainedModel, path: Path | str) -> "PeftModel":
    """Attach the adapter at `path` to its base model, without merging it.

    Raises UserError where the folder is damaged, belongs to another model, or lacks weights that the adapter has: PEFT
    would leave those as they are initialised.
    """
    from peft import PeftModel, get_peft_model_state_dict

    names = read_weight_names(path)
    try:
        model = PeftModel.from_pretrained(base, path)
    except UnpicklingError:
        raise UserError(f"{path}: its weights are a pickle that would run a program when loaded") from None
    except INVALID_ADAPTER as error:
        raise UserError(f"{path} is not an adapter of {base.name_or_path}: {one_line(error)}") from error

    if names is not None:
        expected = set(get_peft_model_state_dict(model, save_embedding_layers=False))
        missing = sorted(expected - names)
        foreign = sorted(name for name in names - expected if "lora_" in name)
        if missing or foreign:
            wrong = [*missing, *foreign]
            raise UserError(
                f"{path} is not an adapter of {base.name_or_path}: {len(missing)} of its weights are missing and "
                f"{len(foreign)} have no place, {wrong[0]} for one; copy the adapter again, or see that "
                "adapter_config.json names its base"
            )
    return model


def read_weight_names(path: Path | str) -> set[str] | None:
    """Return the names of an adapter's tensors; None where they are a pickle.

    Raises UserError where the weights are missing or cannot be read.
    """
    folder = Path(path)
    if not any((folder / name).exists() for name in WEIGHT_FILES):
        raise UserError(f"{path} has no {WEIGHT_FILES[0]}; copy the whole adapter folder")
    file = folder / WEIGHT_FILES[0]
    if not file.exists():
        return None
    try:
        with safe_open(file, framework="pt") as tensors:
            return set(tensors.keys())
    except (SafetensorError, OSError) as error:
        raise UserError(f"{file} cannot be read: {one_line(error)}; copy the adapter again") from None


def merge_into_base(model: "PeftModel") -> PreTrainedModel:
    """Merge the adapter into the weights below it, and return the plain model.

    Where input and output embeddings are one matrix and the adapter changes only one of the two, the merged model has
    two matrices (`tie_word_embeddings: false`): it is the model that was trained. All weights can be trained. Raises
    UserError where PEFT cannot merge this kind of adapter.
    """
    base = model.get_base_model()
    assert isinstance(base, PreTrainedModel)
    was_tied = bool(getattr(base.config, "tie_word_embeddings", False))
    separate_adapted_embeddings(base)
    try:
        merged = model.merge_and_unload()
    except INVALID_ADAPTER as error:
        raise UserError(f"lora: this adapter cannot be merged into the model: {one_line(error)}") from error
    if was_tied:
        merged.config.tie_word_embeddings = tie_equal_embeddings(merged)
    return merged.requires_grad_(True)  # PEFT has frozen the weights below the adapter


def separate_adapted_embeddings(model: PreTrainedModel) -> None:
    """Give the output embeddings a copy of their own where they share the matrix of the input embeddings, and one of
    the two has an adapter.

    Merging an adapter changes a matrix in place, so it would change both, or one of them twice.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [model.get_input_embeddings(), model.get_output_embeddings()]
    if not any(isinstance(layer, BaseTunerLayer) for layer in layers):
        return
    input_layer, output_layer = map(_base_layer, layers)
    if input_layer is None or output_layer is None or output_layer.weight is not input_layer.weight:
        return
    assert isinstance(output_layer.weight, torch.Tensor)
    output_layer.weight = nn.Parameter(output_layer.weight.detach().clone(), requires_grad=False)


def tie_equal_embeddings(model: PreTrainedModel) -> bool:
    """Let input and output embeddings share one matrix again where they are equal; return whether they do."""
    input_layer = model.get_input_embeddings()
    output_layer = model.get_output_embeddings()
    if output_layer is None:
        return True
    input_weight = input_layer.weight
    output_weight = output_layer.weight
    assert isinstance(input_weight, torch.Tensor) and isinstance(output_weight, torch.Tensor)
    difference = (input_weight.detach() - output_weight.detach()).abs().max().item()
    scale = input_weight.detach().abs().max().item()
    if difference > ROUNDING * max(scale, 1.0):
        return False
    output_layer.weight = input_layer.weight
    return True


def _base_layer(module: nn.Module | None) -> nn.Module | None:
    """Return the layer that PEFT has wrapped, or the module itself."""
    if module is None:
        return None
    if hasattr(module, "get_base_layer"):
        return module.get_base_layer()  # pyright: ignore[reportCallIssue] - a layer of PEFT
    return getattr(module, "original_module", module)


@torch.no_grad()
def largest_logit_difference(model: nn.Module, other: nn.Module, tokens: torch.Tensor) -> tuple[float, float]:
    """Return the largest difference between two models' logits of `tokens` (B T), and the largest logit of the first.

    Each runs where it is, in evaluation mode and in its own precision.
    """
    logits = [run_in_evaluation_mode(each, tokens) for each in (model, other)]
    difference = (logits[0] - logits[1]).abs().max().item()
    return difference, logits[0].abs().max().item()


@torch.no_grad()
def run_in_evaluation_mode(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Return a model's logits of `tokens` in float32 on the CPU, and leave the model in the mode it was in."""
    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    try:
        inputs = tokens.to(device)
        logits = model(input_ids=inputs, attention_mask=torch.ones_like(inputs), use_cache=False).logits
    finally:
        model.train(was_training)
    return logits.float().cpu()


def probe_tokens(vocab_size: int, context: int | None, limit: int = 64) -> torch.Tensor:
    """Return ids (1 T) that lie far apart in the vocabulary, at most half of the context, to compare models on."""
    num_tokens = min(limit, max(1, (context or limit) // 2))
    return torch.arange(num_tokens)[None] * 7919 % vocab_size  # a prime

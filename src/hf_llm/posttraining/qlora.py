"""Load a model with weights in 4 or 8 bits, to train adapters on it (QLoRA, https://arxiv.org/abs/2305.14314)."""

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from hf_llm.core.errors import UserError
from hf_llm.hardware.runtime import autocast_type, has_bf16


def check_quantization(quantize: str, where: str) -> None:
    """Raise UserError where this host cannot hold weights in `quantize`: without a CUDA device or bitsandbytes."""
    if not torch.cuda.is_available():
        raise UserError(
            f"{where}.quantize: {quantize} needs an NVIDIA GPU, and this machine shows none; leave `quantize` out to "
            "train the adapters on the whole weights (plain LoRA)"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{where}.quantize: {quantize} needs bitsandbytes: pip install bitsandbytes")


def load_quantized(start: str, quantize: str, where: str, training: Mapping[str, Any]) -> PreTrainedModel:
    """Load the language model at `start`, quantised by bitsandbytes to `quantize`: 4bit or 8bit.

    4bit is the paper's NF4 with double quantisation. Products are computed in the half precision of the section's
    `training`, or in float32 where the GPU or the section has none. Each process has the whole model on its own GPU.
    Raises UserError where there is no CUDA device or no bitsandbytes.
    """
    check_quantization(quantize, where)
    compute_type = choose_compute_type(training, has_bf16("cuda"))
    return AutoModelForCausalLM.from_pretrained(
        start,
        quantization_config=build_quantization_config(quantize, compute_type),
        dtype=compute_type,
        device_map={"": PartialState().local_process_index},
        trust_remote_code=False,
    )


def choose_compute_type(training: Mapping[str, Any], units: bool) -> torch.dtype:
    """Return the type of the products with quantised weights: that of the training's autocast.

    Another one would meet the gradient scaler of fp16 as bf16 gradients. `units` says whether the GPU has units for
    bf16.
    """
    return autocast_type(training, units) or torch.float32


def build_quantization_config(quantize: str, compute_type: torch.dtype = torch.bfloat16) -> BitsAndBytesConfig:
    """Return transformers' settings for `4bit` or `8bit`."""
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_type,
    )


def keep_adapter_in_float32(model: nn.Module) -> None:
    """Hold what is trained in float32.

    TRL converts the adapters on quantised weights to bf16, which loses small updates, and whose gradients the gradient
    scaler of fp16 cannot unscale.
    """
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()

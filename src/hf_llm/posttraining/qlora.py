"""Load a model with weights in 4 or 8 bits, to train adapters on it (QLoRA, https://arxiv.org/abs/2305.14314)."""

import importlib.util

import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from hf_llm.core.errors import UserError


def check_quantization(quantize: str, where: str) -> None:
    """Raise UserError where this host cannot hold weights in `quantize`: without a CUDA device or bitsandbytes."""
    if not torch.cuda.is_available():
        raise UserError(
            f"{where}.quantize: {quantize} needs an NVIDIA GPU, and this machine shows none; leave `quantize` out to "
            "train the adapters on the whole weights (plain LoRA)"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(f"{where}.quantize: {quantize} needs bitsandbytes: pip install bitsandbytes")


def load_quantized(start: str, quantize: str, where: str) -> PreTrainedModel:
    """Load the language model at `start`, quantised by bitsandbytes to `quantize`: 4bit or 8bit.

    4bit is the paper's NF4 with double quantisation. Each process has the whole model on its own GPU. Raises UserError
    where there is no CUDA device or no bitsandbytes.
    """
    check_quantization(quantize, where)
    return AutoModelForCausalLM.from_pretrained(
        start,
        quantization_config=build_quantization_config(quantize),
        dtype=torch.bfloat16,
        device_map={"": PartialState().local_process_index},
        trust_remote_code=False,
    )


def build_quantization_config(quantize: str) -> BitsAndBytesConfig:
    """Return transformers' settings for `4bit` or `8bit`."""
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )

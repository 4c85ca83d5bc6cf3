import importlib.util
import json

import pytest
import torch

from hf_llm.core.errors import UserError
from hf_llm.posttraining.qlora import (
    build_quantization_config,
    choose_compute_type,
    keep_adapter_in_float32,
    load_quantized,
)
from hf_llm.sft import SftSection
from tests.tiny_models import save_tiny_model
from tests.tiny_recipe import run_module


def test_four_bits_are_those_of_the_qlora_paper():
    config = build_quantization_config("4bit")
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype is torch.bfloat16
    assert build_quantization_config("8bit").load_in_8bit


@pytest.mark.parametrize(
    ("training", "units", "expected"),
    [
        ({}, True, torch.bfloat16),
        ({}, False, torch.float32),  # a GPU without bf16, as T4 and V100
        ({"fp16": True}, True, torch.float16),
        ({"fp16": True}, False, torch.float16),
        ({"bf16": False}, True, torch.float32),
        ({"bf16": True}, True, torch.bfloat16),
        ({"fp16": True, "bf16": False}, True, torch.float16),
    ],
)
def test_products_with_quantised_weights_have_the_type_of_the_training(training, units, expected):
    compute_type = choose_compute_type(training, units)
    assert compute_type is expected
    assert build_quantization_config("4bit", compute_type).bnb_4bit_compute_dtype is expected


def test_what_is_trained_is_float32_as_the_scaler_of_fp16_needs():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)).to(torch.bfloat16)
    model[0].requires_grad_(False)
    keep_adapter_in_float32(model)
    assert (model[0].weight.dtype, model[1].weight.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where there is no GPU")
def test_without_a_gpu_quantised_weights_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"sft\.quantize: 4bit needs an NVIDIA GPU.*plain LoRA"):
        load_quantized(str(save_tiny_model(tmp_path)), "4bit", "sft", {})


def test_quantised_weights_without_adapters_are_refused():
    with pytest.raises(ValueError, match="cannot be trained themselves; add a lora section"):
        SftSection(data=["anything"], quantize="4bit")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None,
    reason="needs a CUDA device and bitsandbytes",
)
def test_adapters_are_trained_on_four_bits_and_merged_into_whole_weights(tiny_inputs, precision):
    half = ("--sft.quantize=4bit", f"--sft.training.{precision}=true")
    done = run_module("hf_llm.sft", "tiny.yaml", *half, folder=tiny_inputs)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tiny_inputs / "runs/tiny/sft"
    assert (folder / "adapter/adapter_config.json").exists()
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())

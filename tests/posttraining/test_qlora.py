import importlib.util
import json

import pytest
import torch

from hf_llm.core.errors import UserError
from hf_llm.posttraining.qlora import build_quantization_config, load_quantized
from hf_llm.sft import SftSection
from tests.tiny_models import save_tiny_model
from tests.tiny_recipe import run_module


def test_four_bits_are_those_of_the_qlora_paper():
    config = build_quantization_config("4bit")
    assert config.load_in_4bit and config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant
    assert config.bnb_4bit_compute_dtype is torch.bfloat16
    assert build_quantization_config("8bit").load_in_8bit


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where there is no GPU")
def test_without_a_gpu_quantised_weights_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"sft\.quantize: 4bit needs an NVIDIA GPU.*plain LoRA"):
        load_quantized(str(save_tiny_model(tmp_path)), "4bit", "sft")


def test_quantised_weights_without_adapters_are_refused():
    with pytest.raises(ValueError, match="cannot be trained themselves; add a lora section"):
        SftSection(data=["anything"], quantize="4bit")


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or importlib.util.find_spec("bitsandbytes") is None,
    reason="needs a CUDA device and bitsandbytes",
)
def test_adapters_are_trained_on_four_bits_and_merged_into_whole_weights(tiny_inputs):
    done = run_module("hf_llm.sft", "tiny.yaml", "--sft.quantize=4bit", folder=tiny_inputs)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tiny_inputs / "runs/tiny/sft"
    assert (folder / "adapter/adapter_config.json").exists()
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())

"""What is chosen for a device and a launch."""

import pytest
from transformers import TrainingArguments

from hf_llm.errors import UserError
from hf_llm.recipe import Settings
from hf_llm.training.arguments import training_arguments
from hf_llm.training.device import precision


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_a_launch_in_fp8_keeps_its_precision_on_every_device(device, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    assert precision(device) == {"bf16": False, "fp16": False}


@pytest.mark.parametrize("key", ["bf16", "fp16"])
def test_a_precision_in_the_recipe_that_would_undo_fp8_is_refused(key, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(UserError, match=rf"pretrain\.training\.{key}: the launch asks for fp8"):
        training_arguments(TrainingArguments, Settings({key: True}), tmp_path, 1, "pretrain")

"""What is chosen for a device and a launch."""

import pytest
import torch
from transformers import TrainingArguments

from hf_llm.core.errors import UserError
from hf_llm.core.recipe import Settings
from hf_llm.hardware.runtime import autocast_type, choose_precision, has_bf16
from hf_llm.training.arguments import build_training_arguments


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True, "avx512_bf16": False}, True),
        ({"avx512_f": True}, False),
        ({}, False),
    ],
    ids=str,
)
def test_has_bf16_reads_the_cpus_capabilities(units, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert has_bf16("cpu") is expected
    assert has_bf16("mps") is False


@pytest.mark.parametrize(
    ("limit", "expected"), [("AVX2", False), ("avx512_core", False), ("AVX512_CORE_BF16", True), ("ALL", True)]
)
@pytest.mark.parametrize("variable", ["ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
def test_has_bf16_agrees_with_the_limit_of_onednn(variable, limit, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True, "amx_bf16": True})
    monkeypatch.setenv(variable, limit)
    assert has_bf16("cpu") is expected


@pytest.mark.parametrize(
    ("settings", "units", "chosen"),
    [
        ({}, True, torch.bfloat16),
        ({}, False, None),
        ({"bf16": False}, True, None),
        ({"bf16": True}, False, torch.bfloat16),
        ({"fp16": True}, True, torch.float16),
        ({"fp16": False}, True, torch.bfloat16),
        ({"bf16": None}, True, torch.bfloat16),
    ],
    ids=str,
)
def test_the_recipe_has_the_last_word_on_precision(settings, units, chosen):
    assert autocast_type(settings, units) is chosen


@pytest.mark.parametrize("units", [True, False])
def test_trainer_gets_the_precision_of_the_device(units, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": units})
    arguments = build_training_arguments(TrainingArguments, Settings({}), tmp_path, 1, "pretrain")
    assert (arguments.bf16, arguments.fp16) == (units, False)


def test_a_launch_in_fp8_keeps_its_precision(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    assert choose_precision({}, units=True) == {"bf16": False, "fp16": False}


@pytest.mark.parametrize("key", ["bf16", "fp16"])
def test_a_precision_in_the_recipe_that_would_undo_fp8_is_refused(key, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(UserError, match=rf"pretrain\.training\.{key}: the launch asks for fp8"):
        build_training_arguments(TrainingArguments, Settings({key: True}), tmp_path, 1, "pretrain")

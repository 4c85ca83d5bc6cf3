"""What only a CUDA device can show. Run with `pytest -m gpu`."""

import json

import pytest
import torch

from tests.tiny_recipe import run_module

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_pretraining_takes_bf16_and_compile_by_itself_and_learns(tiny_inputs):
    done = run_module("hf_llm.pretrain", "tiny.yaml", "--pretrain.training.max_steps=40", folder=tiny_inputs)
    assert done.returncode == 0, done.stdout + done.stderr
    history = json.loads((tiny_inputs / "runs/tiny/base/trainer_state.json").read_text())["log_history"]
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < losses[0] - 1
    assert all(entry["memory_gib"] > 0 for entry in history if "loss" in entry)


def test_the_whole_life_runs_on_a_gpu(tiny_inputs):
    done = run_module("hf_llm.run", "tiny.yaml", folder=tiny_inputs)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_chunked_loss_equals_plain_cross_entropy(dtype):
    from hf_llm.model.modeling_hf_llm import HfLlmHead

    torch.manual_seed(0)
    head = HfLlmHead(256, 8192, bias=False, device="cuda", dtype=dtype)
    hidden = torch.randn(1, 4096, 256, device="cuda", dtype=dtype, requires_grad=True)
    labels = torch.randint(0, 8192, (1, 4096), device="cuda")
    total, _ = head(hidden, labels)
    gradient = torch.autograd.grad(total, (hidden, head.weight))
    plain = torch.nn.functional.cross_entropy(head(hidden).float().flatten(0, 1), labels.flatten(), reduction="sum")
    expected = torch.autograd.grad(plain, (hidden, head.weight))
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(total, plain, **tolerance)
    for found, wanted in zip(gradient, expected, strict=True):
        torch.testing.assert_close(found, wanted, **tolerance)

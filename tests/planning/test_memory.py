"""What a training step takes, found without taking it: against torch's own tracker, arithmetic, and real steps."""

import json
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import GPT2Config, LlamaConfig

from hf_llm.core.errors import UserError
from hf_llm.planning.allocate_only_mode import Untouched
from hf_llm.planning.memory import (
    ACTIVATIONS,
    COPIES,
    GRADIENTS,
    LOSS,
    OPTIMIZER,
    TRAINING,
    UPDATE,
    WEIGHTS,
    extrapolated,
    footprint,
    on_this_cpu,
    steps,
)
from hf_llm.planning.memory_estimate import arguments_for_planning, model_of
from hf_llm.training.muon import matrices_of
from tests.tiny_models import tiny_config

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "benchmarks"))
from planning import CONFIGURATIONS, resident  # noqa: E402


def taken(config=None, checkpointing=False, **more):
    settings = {key: more.pop(key) for key in ("optim",) if key in more}
    arguments = arguments_for_planning(settings, checkpointing)
    build = partial(model_of, config or tiny_config(), lora=more.pop("lora", None))
    return footprint(build, more.pop("batch", 4), more.pop("context", 64), arguments, **more)


def parameters(config=None):
    with torch.device("meta"):
        return model_of(config or tiny_config()).num_parameters()


def test_the_peak_is_the_one_that_torchs_own_tracker_sees():
    from torch.distributed._tools.mem_tracker import MemTracker

    for config in (tiny_config(), LlamaConfig(vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
                                              num_attention_heads=4)):  # fmt: skip
        with FakeTensorMode(), MemTracker() as tracker:
            model = model_of(config)
            tokens = torch.zeros(4, 64, dtype=torch.long)
            model(input_ids=tokens, labels=tokens.clone()).loss.backward()
        seen = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]
        ours = {**taken(config, optim="sgd").phases[TRAINING]}
        assert sum(ours.values()) == pytest.approx(seen, rel=0.01)


def test_weights_gradients_and_states_are_what_arithmetic_says():
    found, count = taken(), parameters()
    assert found.phases[UPDATE][WEIGHTS] == pytest.approx(4 * count, rel=0.01)
    assert found.phases[UPDATE][GRADIENTS] == 4 * count
    assert found.phases[UPDATE][OPTIMIZER] == pytest.approx(8 * count, rel=0.01)
    assert OPTIMIZER not in taken(optim="sgd").phases[UPDATE]
    assert taken(optim="adafactor").phases[UPDATE][OPTIMIZER] < 2 * count


def test_phases_do_not_add_up():
    found = taken()
    assert found.peak == max(sum(parts.values()) for parts in found.phases.values())
    assert found.peak < sum(sum(parts.values()) for parts in found.phases.values())


def test_gradients_are_there_all_the_time_only_in_accumulation():
    at_the_loss = taken(batch=32).phases[TRAINING].get(GRADIENTS, 0)
    accumulating = taken(batch=32, accumulate=True).phases[TRAINING][GRADIENTS]
    assert at_the_loss < accumulating == 4 * parameters()


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing():
    once, twice = (taken(batch=batch).phases[TRAINING][ACTIVATIONS] for batch in (4, 8))
    assert twice == pytest.approx(2 * once, rel=0.05)
    config = tiny_config(num_hidden_layers=8)
    assert taken(config, checkpointing=True).peak < 0.5 * taken(config).peak


def test_autocast_keeps_copies_of_the_weights():
    config = tiny_config(vocab_size=320, hidden_size=128, intermediate_size=512, num_attention_heads=4)
    found = taken(config, autocast=torch.bfloat16).phases[TRAINING]
    assert found[COPIES] == pytest.approx(2 * parameters(config), rel=0.02)


def test_only_adapters_have_gradients_and_states():
    found = taken(lora={"r": 4, "target_modules": "all-linear"}, batch=1)
    assert found.phases[UPDATE][GRADIENTS] < 0.3 * 4 * parameters()
    assert found.phases[UPDATE][OPTIMIZER] == pytest.approx(2 * found.phases[UPDATE][GRADIENTS], rel=0.05)


def test_the_loss_of_a_plain_model_holds_all_logits_ours_some_on_a_cpu():
    gpt = taken(GPT2Config(vocab_size=32768, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0), batch=64)
    with FakeTensorMode():
        ours = steps(partial(model_of, tiny_config(vocab_size=32768)), 64, 64, arguments_for_planning({}))
    logits = 64 * 64 * 32768 * 4
    assert ours.phases[TRAINING][LOSS] < logits <= gpt.phases[TRAINING][LOSS]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_deep_model_is_known_from_its_first_layers(checkpointing):
    config, arguments = tiny_config(num_hidden_layers=10), arguments_for_planning({}, checkpointing)
    short = extrapolated(model_of, config, 4, 64, arguments)
    assert short.peak == pytest.approx(taken(config, checkpointing).peak, rel=0.01)


def test_untouched_tensors_take_no_memory_and_keep_their_shapes():
    before = resident("VmRSS")
    with Untouched():
        x = torch.empty(16384, 4096, requires_grad=True)  # 268 MB, and each result as much
        y = (x * 2).view(4096, 16384).relu()
        (y @ y.T).sum().backward()
        y.detach().add_(1)
        assert y.shape == (4096, 16384) and x.grad.shape == x.shape and y.detach().sum().item() == 1.0
    assert resident("VmRSS") - before < 100e6


def test_a_fault_in_the_trial_is_not_swallowed():
    with pytest.raises(RuntimeError, match="has failed"):
        on_this_cpu(partial(model_of, None), 1, 8, arguments_for_planning({}))


def child(what: str, **spec) -> dict[str, float]:
    """What `benchmarks/planning.py` predicts or measures, in a process of its own."""
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "planning.py", "--child", what, json.dumps(spec)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    )
    return json.loads(done.stdout.splitlines()[-1])


def compare(name: str) -> float:
    predicted = child("predict", **CONFIGURATIONS[name], speed=False)["bytes"]
    return predicted / child("measure", **CONFIGURATIONS[name])["bytes"]


def test_the_peak_of_a_real_training_is_foretold():
    assert compare("small") == pytest.approx(1, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if name != "small"])
def test_the_peak_of_real_trainings_of_all_kinds_is_foretold(name):
    assert compare(name) == pytest.approx(1, abs=0.1)


def test_muon_keeps_one_number_for_each_element_of_a_matrix_and_adamw_two_for_the_rest():
    model = model_of(tiny_config())
    matrices = sum(parameter.numel() for parameter in matrices_of(model))
    counters = 4 * (len(list(model.parameters())) - len(matrices_of(model)))  # AdamW counts the steps of each
    states = taken(optim="muon").phases[UPDATE][OPTIMIZER]
    assert states == 4 * matrices + 8 * (model.num_parameters() - matrices) + counters


@pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")
def test_an_optimizer_that_does_not_run_without_data_is_told_unknown():
    with pytest.raises(UserError, match="what adamw_torch_8bit takes is not known"):
        taken(optim="adamw_torch_8bit")

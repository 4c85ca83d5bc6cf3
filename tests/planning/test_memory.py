"""The footprint of a training step against torch's own tracker, arithmetic, and real steps."""

import json
import multiprocessing
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AlbertConfig, GPT2Config, LlamaConfig, PreTrainedConfig

from hf_llm.core.errors import UserError
from hf_llm.hardware.memory_counters import resident_bytes
from hf_llm.model.cross_entropy import LOGITS_AT_ONCE
from hf_llm.planning import memory
from hf_llm.planning.allocate_only_mode import AllocateOnlyMode
from hf_llm.planning.memory import (
    ACTIVATIONS,
    COPIES,
    GRADIENTS,
    LOSS,
    OPTIMIZER,
    TRAINING,
    UPDATE,
    WEIGHTS,
    Footprint,
    estimate_cpu_footprint,
    extrapolate_footprint,
    has_equal_layers,
    trace_footprint,
    trace_steps,
    trained_process_bytes,
)
from hf_llm.planning.memory_estimate import build_planned_model, build_planning_arguments
from hf_llm.training.muon import muon_matrices
from tests.tiny_models import tiny_config

ROOT = Path(__file__).parent.parent.parent
sys.path.append(str(ROOT / "benchmarks"))
from planning import CONFIGURATIONS, resident  # noqa: E402


def trace_tiny_step(
    config: PreTrainedConfig | None = None,
    batch: int = 4,
    context: int = 64,
    checkpointing: bool = False,
    lora: dict | None = None,
    optim: str | None = None,
    **step_arguments,
) -> Footprint:
    settings = {} if optim is None else {"optim": optim}
    arguments = build_planning_arguments(settings, checkpointing)
    build = partial(build_planned_model, config or tiny_config(), lora=lora)
    return trace_footprint(build, batch, context, arguments, **step_arguments)


def count_parameters(config: PreTrainedConfig | None = None) -> int:
    with torch.device("meta"):
        return build_planned_model(config or tiny_config()).num_parameters()


@pytest.mark.parametrize(
    "config",
    [
        tiny_config(),
        LlamaConfig(vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4),
    ],
    ids=["hf_llm", "llama"],
)
def test_the_peak_is_that_of_torchs_own_tracker(config):
    from torch.distributed._tools.mem_tracker import MemTracker

    with FakeTensorMode(), MemTracker() as tracker:
        model = build_planned_model(config)
        tokens = torch.zeros(4, 64, dtype=torch.long)
        model(input_ids=tokens, labels=tokens.clone()).loss.backward()
    expected = tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"]

    parts = trace_tiny_step(config, optim="sgd").phases[TRAINING]
    assert sum(parts.values()) == pytest.approx(expected, rel=0.01)


def test_weights_gradients_and_states_are_what_arithmetic_says():
    parameters = count_parameters()
    update_parts = trace_tiny_step().phases[UPDATE]
    assert update_parts[WEIGHTS] == pytest.approx(4 * parameters, rel=0.01)
    assert update_parts[GRADIENTS] == 4 * parameters
    assert update_parts[OPTIMIZER] == pytest.approx(8 * parameters, rel=0.01)

    assert OPTIMIZER not in trace_tiny_step(optim="sgd").phases[UPDATE]
    assert trace_tiny_step(optim="adafactor").phases[UPDATE][OPTIMIZER] < 2 * parameters


def test_phases_do_not_add_up():
    footprint = trace_tiny_step()
    phase_bytes = [sum(parts.values()) for parts in footprint.phases.values()]
    assert footprint.peak == max(phase_bytes)
    assert footprint.peak < sum(phase_bytes)


def test_gradients_are_held_throughout_the_pass_only_when_accumulating():
    parts = trace_tiny_step(batch=32).phases[TRAINING]
    accumulating_parts = trace_tiny_step(batch=32, accumulate=True).phases[TRAINING]
    assert parts.get(GRADIENTS, 0) < accumulating_parts[GRADIENTS] == 4 * count_parameters()


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing():
    activations = trace_tiny_step(batch=4).phases[TRAINING][ACTIVATIONS]
    activations_of_double = trace_tiny_step(batch=8).phases[TRAINING][ACTIVATIONS]
    assert activations_of_double == pytest.approx(2 * activations, rel=0.05)

    config = tiny_config(num_hidden_layers=8)
    assert trace_tiny_step(config, checkpointing=True).peak < 0.5 * trace_tiny_step(config).peak


def test_autocast_keeps_copies_of_the_weights():
    config = tiny_config(vocab_size=320, hidden_size=128, intermediate_size=512, num_attention_heads=4)
    parts = trace_tiny_step(config, autocast=torch.bfloat16).phases[TRAINING]
    assert parts[COPIES] == pytest.approx(2 * count_parameters(config), rel=0.02)


def test_only_adapters_have_gradients_and_states():
    parts = trace_tiny_step(lora={"r": 4, "target_modules": "all-linear"}, batch=1).phases[UPDATE]
    assert parts[GRADIENTS] < 0.3 * 4 * count_parameters()
    assert parts[OPTIMIZER] == pytest.approx(2 * parts[GRADIENTS], rel=0.05)


def test_building_adapters_leaves_module_to_as_it_was():
    move_module = torch.nn.Module.to
    with torch.device("meta"):
        build_planned_model(tiny_config(), lora={"r": 4, "target_modules": "all-linear"})
    assert torch.nn.Module.to is move_module


def test_tracing_leaves_the_chunks_of_logits_as_they_were():
    before = dict(LOGITS_AT_ONCE)
    trace_tiny_step()
    assert before == LOGITS_AT_ONCE


def test_the_loss_of_a_plain_model_holds_all_logits_and_ours_on_a_cpu_some():
    plain_config = GPT2Config(vocab_size=32768, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0)
    plain = trace_tiny_step(plain_config, batch=64)
    with FakeTensorMode():
        ours = trace_steps(
            partial(build_planned_model, tiny_config(vocab_size=32768)), 64, 64, build_planning_arguments({})
        )
    logits_bytes = 64 * 64 * 32768 * 4
    assert ours.phases[TRAINING][LOSS] < logits_bytes <= plain.phases[TRAINING][LOSS]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_deep_model_is_extrapolated_from_its_first_layers(checkpointing):
    config = tiny_config(num_hidden_layers=10)
    arguments = build_planning_arguments({}, checkpointing)
    extrapolated = extrapolate_footprint(build_planned_model, config, 4, 64, arguments)
    assert extrapolated.peak == pytest.approx(trace_tiny_step(config, checkpointing=checkpointing).peak, rel=0.01)


@pytest.mark.parametrize("groups", [1, 3])
def test_shared_layers_are_counted_as_often_as_they_exist(groups):
    sizes = {"hidden_size": 32, "embedding_size": 16, "intermediate_size": 64, "num_attention_heads": 4}
    config = AlbertConfig(vocab_size=256, num_hidden_layers=6, num_hidden_groups=groups, **sizes)
    planned = extrapolate_footprint(build_planned_model, config, 2, 32, build_planning_arguments({}))
    assert planned.peak == trace_tiny_step(config, batch=2, context=32).peak


def test_layers_that_differ_are_traced_as_they_are():
    kinds = ["sliding_attention"] * 5 + ["full_attention"]
    config = tiny_config(num_hidden_layers=6, layer_types=kinds, sliding_window=4)
    assert not has_equal_layers(build_planned_model, config)
    assert has_equal_layers(build_planned_model, tiny_config(num_hidden_layers=6))


def test_tensors_of_allocate_only_mode_take_no_memory_and_keep_their_shapes():
    before = resident("VmRSS")
    with AllocateOnlyMode():
        x = torch.empty(16384, 4096, requires_grad=True)  # 268 MB, and each result as much
        y = (x * 2).view(4096, 16384).relu()
        (y @ y.T).sum().backward()
        y.detach().add_(1)
        assert y.shape == (4096, 16384)
        assert x.grad.shape == x.shape
        assert y.detach().sum().item() == 1.0
    assert resident("VmRSS") - before < 100e6


def test_an_error_in_the_fork_is_raised():
    with pytest.raises(RuntimeError, match="failed"):
        estimate_cpu_footprint(partial(build_planned_model, None), 1, 8, build_planning_arguments({}))


def test_nothing_is_forked_where_the_platform_cannot_fork(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    monkeypatch.setattr(memory, "run_in_fork", lambda work: pytest.fail("forked"))

    footprint, growth = estimate_cpu_footprint(
        partial(build_planned_model, tiny_config()), 4, 64, build_planning_arguments({})
    )
    assert growth == footprint.peak
    trained_process_bytes.cache_clear()
    try:
        assert trained_process_bytes() == pytest.approx(resident_bytes(), rel=0.1)
    finally:
        trained_process_bytes.cache_clear()


def run_child(work: str, **spec) -> dict[str, float]:
    """What `benchmarks/planning.py` predicts or measures, in a process of its own."""
    completed = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "planning.py", "--child", work, json.dumps(spec)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=600,
    )
    return json.loads(completed.stdout.splitlines()[-1])


def predicted_to_actual(name: str) -> float:
    predicted = run_child("predict", **CONFIGURATIONS[name], speed=False)["bytes"]
    return predicted / run_child("measure", **CONFIGURATIONS[name])["bytes"]


def test_the_peak_of_a_real_training_is_predicted():
    assert predicted_to_actual("small") == pytest.approx(1, abs=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CONFIGURATIONS if name != "small"])
def test_the_peaks_of_real_trainings_of_all_kinds_are_predicted(name):
    assert predicted_to_actual(name) == pytest.approx(1, abs=0.1)


def test_muon_keeps_one_number_for_each_element_of_a_matrix_and_adamw_two_for_the_others():
    model = build_planned_model(tiny_config())
    matrices = muon_matrices(model)
    matrix_elements = sum(parameter.numel() for parameter in matrices)
    step_counters = 4 * (len(list(model.parameters())) - len(matrices))  # AdamW counts the steps of each
    states = trace_tiny_step(optim="muon").phases[UPDATE][OPTIMIZER]
    assert states == 4 * matrix_elements + 8 * (model.num_parameters() - matrix_elements) + step_counters


@pytest.mark.skipif(find_spec("torchao") is None, reason="needs torchao")
def test_an_optimizer_that_does_not_run_without_data_is_refused():
    with pytest.raises(UserError, match="the memory of adamw_torch_8bit is not known"):
        trace_tiny_step(optim="adamw_torch_8bit")

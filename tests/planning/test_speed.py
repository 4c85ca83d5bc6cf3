import sys
from functools import partial
from pathlib import Path

import pytest

from hf_llm.core.errors import UserError
from hf_llm.hardware.devices import parse_device
from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.model.summary import flops_per_token
from hf_llm.pipeline.sizing import DATA_SHEET_UTILISATION
from hf_llm.planning.memory import truncate_layers
from hf_llm.planning.memory_estimate import build_planned_model, build_planning_arguments
from hf_llm.planning.speed import StepTiming, estimate_speed, measure_speed, time_layers
from tests.tiny_models import tiny_config


def test_estimate_speed_takes_a_share_of_the_data_sheets_rate():
    config = HfLlmConfig()
    card = parse_device("rtx4090")
    speed = estimate_speed(config, card, 2048, devices=4)
    expected = 4 * DATA_SHEET_UTILISATION * 165.2e12 / flops_per_token(config, 2048)
    assert speed.tokens_per_second == pytest.approx(expected)
    assert "165 TFLOP/s" in speed.source

    slower = estimate_speed(config, card, 2048, devices=4, checkpointing=True)
    assert slower.tokens_per_second == pytest.approx(0.75 * speed.tokens_per_second)


def test_estimate_speed_refuses_a_device_without_published_rates():
    with pytest.raises(UserError, match="run this on it"):
        estimate_speed(HfLlmConfig(), parse_device("apple-m3-max"), 2048)


@pytest.mark.parametrize(
    ("card", "dtype", "flops_per_second"),
    [
        ("t4", "float16", 65e12),
        ("t4", "bfloat16", 8.1e12),  # for which it has no units
        ("rtx4090", "float32", 82.6e12),
        ("rtx4090", "", 165.2e12),
    ],
)
def test_the_data_sheets_rate_is_that_of_the_type_trained_in(card, dtype, flops_per_second):
    config = HfLlmConfig()
    speed = estimate_speed(config, parse_device(card), 128, dtype=dtype)
    expected = DATA_SHEET_UTILISATION * flops_per_second / flops_per_token(config, 128)
    assert speed.tokens_per_second == pytest.approx(expected, rel=0.01)


def test_a_small_model_is_bound_by_memory_and_launches():
    small = tiny_config(hidden_size=128, intermediate_size=256, num_hidden_layers=4, vocab_size=4096)
    h100 = parse_device("h100")
    speed = estimate_speed(small, h100, 512, devices=8)
    by_arithmetic = 8 * DATA_SHEET_UTILISATION * h100.flops["bfloat16"] / flops_per_token(small, 512)
    assert speed.tokens_per_second < by_arithmetic / 3
    assert "launches" in speed.source
    assert estimate_speed(small, h100, 512, devices=8, micro_batch=1).tokens_per_second < speed.tokens_per_second / 4


def test_seconds_of_windows_layers_and_parameters_add_up():
    timing = StepTiming(window=0.5, layer=0.25, parameter=1e-6)
    assert timing.tokens_per_second(layers=6, context=100, windows=4, parameters=2_000_000) == 400 / (4 * 2 + 2)


def test_truncate_layers_changes_nothing_else():
    deep_config = tiny_config(num_hidden_layers=6)
    config = truncate_layers(deep_config, 2)
    assert (config.num_hidden_layers, config.hidden_size) == (2, 32)
    assert build_planned_model(config).num_parameters() < build_planned_model(deep_config).num_parameters()


def test_a_deep_model_is_timed_on_some_of_its_layers():
    arguments = build_planning_arguments({})
    config = tiny_config(num_hidden_layers=12, hidden_size=256, intermediate_size=704)
    timing = time_layers(build_planned_model, config, 4, 64, arguments)
    assert timing.window >= 0
    assert timing.layer > 0
    assert timing.parameter > 0

    speed = measure_speed(build_planned_model, tiny_config(num_hidden_layers=12), 4, 64, 8, arguments)
    assert speed.tokens_per_second > 0
    assert speed.source.startswith("measured here on 4 of 12 layers")


def test_adapters_are_timed_as_they_are_trained():
    build = partial(build_planned_model, lora={"r": 4, "target_modules": "all-linear"})
    timing = time_layers(build, tiny_config(), 2, 32, build_planning_arguments({}))
    assert timing.parameter > 0


@pytest.mark.slow
def test_the_speed_of_a_real_training_is_predicted():
    sys.path.append(str(Path(__file__).parent.parent.parent / "benchmarks"))
    from planning import CONFIGURATIONS, in_a_process

    spec = CONFIGURATIONS["grouped queries, sgd"]
    ratios = []
    for _ in range(5):  # another program on the same cores can spoil one pair, hardly five
        predicted = in_a_process("predict", spec)["tokens_per_second"]
        actual = in_a_process("measure", spec)["tokens_per_second"]
        ratios.append(predicted / actual)
        if 0.75 < ratios[-1] < 1.25:
            return
    pytest.fail(f"predicted / actual: {ratios}")

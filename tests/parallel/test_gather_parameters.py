"""Sampling from weights that are spread over processes: PPO under FSDP2 and ZeRO-3 learns what it does under DDP."""

import json
from functools import partial

import pytest
from transformers import TrainingArguments

from tests.posttraining.ppo.ppo_tasks import nearness_to_four, tiny_ppo
from tests.posttraining.ppo.test_trainer import with_critic, with_lora
from tests.tiny_recipe import ROOT
from tests.training.fault_tolerance.faults import Ended, kill_in_step, start

ENGINES = {
    "ddp": {},
    "fsdp2": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    },
    "zero3": {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(ROOT / "ds_configs/zero3.json"),
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
        "DS_ACCELERATOR": "cpu",
    },
}
TIMES = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second")


def trained(folder, engine, *faults, build=tiny_ppo, reward=nearness_to_four, **changes) -> Ended:
    """How two processes under `engine` ended, whose answers have many lengths."""
    variables = {**ENGINES[engine], **changes.pop("variables", {})}
    settings = {"eval_on_start": True, "eval_strategy": "steps", "eval_steps": 6, "temperature": 3.0, **changes}
    return start(folder, *faults, processes=2, build=build, reward=reward, variables=variables, **settings).end(240)


def logged(folder) -> list[dict]:
    """What the last checkpoint's log says, without how long it took."""
    last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    entries = json.loads((last / "trainer_state.json").read_text())["log_history"]
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in entries]


def check_alike(one, other):
    """Equal logs, but for the shares of clipped tokens: one may lie on either side of the limit."""
    for entry, same in zip(logged(one), logged(other), strict=True):
        clipped = {name: same[name] for name in same if name.endswith("clip_fraction")}
        assert {**entry, **clipped} == pytest.approx(same, abs=1e-3)


def test_under_fsdp2_two_processes_answer_and_learn_as_under_ddp(tmp_path):
    for engine in ("ddp", "fsdp2"):
        ended = trained(tmp_path / engine, engine, max_steps=5, save_steps=5, logging_steps=1, eval_strategy="no")
        assert ended.codes == [0, 0], ended.output
    check_alike(tmp_path / "fsdp2", tmp_path / "ddp")
    assert [entry["step"] for entry in logged(tmp_path / "ddp") if "reward" in entry] == [1, 5]
    assert not (tmp_path / "fsdp2/checkpoint-5/critic.safetensors").exists()  # FSDP's own file holds it


@pytest.mark.slow
@pytest.mark.parametrize("make", [with_critic, with_lora])
@pytest.mark.parametrize("engine", ["fsdp2", "zero3"])
def test_killed_within_a_rollout_sharded_training_goes_on_exactly(engine, make, tmp_path):
    for name in ("ddp", engine):
        ended = trained(tmp_path / name, name, build=make)
        assert ended.codes == [0, 0], ended.output
    check_alike(tmp_path / engine, tmp_path / "ddp")
    killed = trained(tmp_path / "killed", engine, partial(kill_in_step, step=8), build=make)
    assert killed.codes == [-9, -9]
    again = trained(tmp_path / "killed", engine, build=make)
    assert "resuming at step 6 from" in again.output
    assert again.outcome["history"] == ended.outcome["history"]
    assert logged(tmp_path / "killed") == logged(tmp_path / engine)
    weights = "checkpoint-12/adapter_model.safetensors" if make is with_lora else "checkpoint-12/model.safetensors"
    assert (tmp_path / "killed" / weights).read_bytes() == (tmp_path / engine / weights).read_bytes()


@pytest.mark.slow
def test_in_half_precision_a_sharded_policy_starts_each_rollout_at_ratio_1(tmp_path):
    settings = {"bf16": True, "activation_checkpointing": True, "logging_steps": 1}
    variables = {"FSDP_RESHARD_AFTER_FORWARD": "false"}
    ended = trained(tmp_path / "base", "fsdp2", build=with_lora, variables=variables, **settings)
    assert ended.codes == [0, 0], ended.output
    starts = [entry for entry in logged(tmp_path / "base") if "reward" in entry]
    assert [entry["step"] for entry in starts] == [1, 5, 9]
    for entry in starts:
        assert entry["clip_fraction"] == 0
        assert entry["update_kl"] == pytest.approx(0, abs=1e-6)


def loaded_late(folder, **changes):
    """A trainer whose model is made when DeepSpeed knows already that weights are to be spread."""
    arguments = TrainingArguments(str(folder), use_cpu=True)
    assert arguments.deepspeed_plugin.zero_stage == 3
    return tiny_ppo(folder, **changes)


@pytest.mark.parametrize(
    ("engine", "changes", "words"),
    [
        (
            "fsdp2",
            {"variables": {"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}},
            "fsdp_cpu_ram_efficient_loading: true loads",
        ),
        pytest.param("zero3", {"build": loaded_late}, "load it before PPOConfig", marks=pytest.mark.slow),
    ],
)
def test_weights_that_no_process_could_hold_are_refused(engine, changes, words, tmp_path):
    ended = trained(tmp_path / "base", engine, **changes)
    assert ended.codes == [2, 2], ended.output
    assert words in ended.output and "Traceback" not in ended.output

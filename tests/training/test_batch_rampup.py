"""Shorter windows and smaller updates in the first steps of tiny trainings."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from hf_llm.core.errors import UserError
from hf_llm.training.batch_rampup import (
    BatchRampup,
    ContextRampup,
    Rampup,
    add_rampup_callbacks,
    context_lengths,
    cut_windows,
    first_step_updates,
)
from hf_llm.training.fault_tolerance.loss_spikes import SpikeSection
from hf_llm.training.pretraining_trainer import PretrainingTrainer
from tests.tiny_models import tiny_model
from tests.tiny_recipe import launch, losses, prepare, run_module
from tests.training.fault_tolerance.faults import Ended, Fault, kill_in_step, tiny_trainer
from tests.training.fault_tolerance.faults import run as run_trainer

STEP = 8 * 16  # tokens: 4 micro-batches of 2 windows of 16
SHAPE = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4, "logging_steps": 1}


def pretraining_trainer(folder: Path, z_loss: float = 0.0, **changes: Any) -> PretrainingTrainer:
    """`tiny_trainer` as the Trainer that ramp-ups are for."""
    plain = tiny_trainer(folder, **changes)
    data = {"train_dataset": plain.train_dataset, "eval_dataset": plain.eval_dataset}
    return PretrainingTrainer(plain.model, plain.args, z_loss=z_loss, **data)


def run(folder: Path, *faults: Fault, **changes: Any) -> Ended:
    return run_trainer(folder, *faults, build=pretraining_trainer, **changes)


def ramp_up(trainer, context=None, batch=None):
    add_rampup_callbacks(trainer, 16, STEP, context, batch)


smaller = partial(ramp_up, batch=Rampup(STEP // 4, 6))
smaller_for_long = partial(ramp_up, batch=Rampup(STEP // 4, 100))
both = partial(ramp_up, context=Rampup(4, 6), batch=Rampup(STEP // 4, 6))


def test_each_size_has_an_equal_part_of_the_steps():
    assert [Rampup(128, 9).step_divisor(step, 1024) for step in range(11)] == [8, 8, 8, 4, 4, 4, 2, 2, 2, 1, 1]
    assert [Rampup(512, 5).step_divisor(step, 1024) for step in range(6)] == [2, 2, 2, 2, 2, 1]
    assert [Rampup(1024, 5).step_divisor(step, 1024) for step in range(2)] == [1, 1]
    assert context_lengths(1024, Rampup(128, 9)) == [128, 256, 512, 1024]
    assert context_lengths(1024, None) == [1024]
    assert first_step_updates(4096, Rampup(1024, 9)) == 4 and first_step_updates(4096, None) == 1


@pytest.mark.parametrize("start", [3, 96, 2048])
def test_what_does_not_double_to_the_end_is_refused_with_what_does(start):
    with pytest.raises(UserError, match=r"start: \d+ does not become 1024 by doublings; one of 512, 256, "):
        context_lengths(1024, Rampup(start, 9))
    with pytest.raises(ValueError, match="at least 1"):
        Rampup(0, 3)


def test_a_window_is_cut_into_rows_in_its_order():
    batch = {"input_ids": torch.arange(16).reshape(2, 8), "labels": torch.arange(16).reshape(2, 8)}
    assert cut_windows(batch, 2)["input_ids"].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15]]
    assert torch.equal(cut_windows(batch, 2)["labels"], cut_windows(batch, 2)["input_ids"])


@pytest.mark.parametrize("positions", ["rope", "alibi", "learned", "none"])
def test_rows_of_a_cut_window_do_not_see_each_other(positions):
    model = tiny_model(positions=positions)
    ids = torch.randint(0, 256, (2, 32))
    whole = model(**cut_windows({"input_ids": ids, "labels": ids}, 4)).loss
    alone = [model(input_ids=row[None], labels=row[None]).loss for row in ids.reshape(-1, 8)]
    assert whole.item() == pytest.approx(torch.stack(alone).mean().item(), rel=1e-6)


@pytest.mark.slow
def test_a_compiled_model_is_compiled_once_more_for_all_other_lengths():
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(tiny_model().train(), backend=counter)
    counts = []
    for length in (16, 32, 64, 128, 128):
        ids = torch.randint(0, 256, (256 // length, length))
        compiled(input_ids=ids, labels=ids).loss.backward()
        counts.append(counter.frame_count)
    assert counts[1:] == [2 * counts[0]] * 4


class Seen(TrainerCallback):
    """The micro-batches of each step, and the sizes of the updates in them."""

    def __init__(self, trainer):
        self.batches, self.updates = [], []
        fetch = trainer.get_batch_samples

        def get_batch_samples(*args):
            batches, items = fetch(*args)
            self.batches.append((batches, items))
            self.updates.append(0)
            return batches, items

        trainer.get_batch_samples = get_batch_samples

    def on_optimizer_step(self, *args, **kwargs):
        self.updates[-1] += 1


def trained(folder: Path, **rampups) -> tuple[Seen, SimpleNamespace]:
    """What a training of 7 steps has seen, and its log."""
    trainer = pretraining_trainer(folder, **SHAPE, max_steps=7, save_strategy="no")
    ramp_up(trainer, **rampups)
    seen = Seen(trainer)
    trainer.add_callback(seen)
    trainer.train()
    return seen, trainer.state


def tokens(seen):
    return [torch.cat([batch["input_ids"].flatten() for batch in batches]).tolist() for batches, _ in seen.batches]


def test_the_tokens_and_their_order_are_those_without_a_rampup(tmp_path):
    plain, _ = trained(tmp_path / "plain")
    warmed, state = trained(tmp_path / "warm", context=Rampup(4, 6), batch=Rampup(STEP // 4, 4))
    assert tokens(warmed) == tokens(plain)
    assert [batches[0]["input_ids"].shape for batches, _ in warmed.batches] == 3 * [(8, 4)] + 3 * [(4, 8)] + [(2, 16)]
    assert [int(items) for _, items in warmed.batches] == 3 * [32 * 3] + 3 * [16 * 7] + [8 * 15]
    assert warmed.updates[:4] == [4, 4, 2, 2] and warmed.updates[4:7] == [1, 1, 1]
    assert state.global_step == 7


def test_an_update_is_what_a_whole_step_of_its_tokens_would_be(tmp_path):
    same = {"max_grad_norm": 0.1, "lr_scheduler_type": "constant", "train_sampling_strategy": "sequential"}
    warmed = run(tmp_path / "warm", smaller_for_long, **SHAPE | same, max_steps=3)
    whole = run(tmp_path / "whole", **SHAPE | same | {"gradient_accumulation_steps": 1}, max_steps=12)
    assert warmed.outcome["weights"] == whole.outcome["weights"]
    losses = [float.fromhex(loss) for _, loss, _ in whole.outcome["history"]]
    for (_, loss, norm), start in zip(warmed.outcome["history"], (0, 4, 8), strict=True):
        assert float.fromhex(loss) == pytest.approx(sum(losses[start : start + 4]) / 4, rel=1e-6)
        assert norm == whole.outcome["history"][start + 3][2]


def test_so_it_is_with_terms_added_to_the_loss(tmp_path):
    same = {"lr_scheduler_type": "constant", "train_sampling_strategy": "sequential", "label_smoothing_factor": 0.1}

    def train(name: str, steps: int, batch: Rampup | None, **changes) -> tuple[PretrainingTrainer, list[float]]:
        settings = SHAPE | same | {"save_strategy": "no", "max_steps": steps} | changes
        trainer = pretraining_trainer(tmp_path / name, z_loss=1e-2, **settings)
        ramp_up(trainer, batch=batch)
        trainer.train()
        return trainer, [entry["objective"] for entry in trainer.state.log_history if "objective" in entry]

    warmed, objectives = train("warm", 3, Rampup(STEP // 4, 100))
    whole, each = train("whole", 12, None, gradient_accumulation_steps=1)
    assert all(map(torch.equal, warmed.model.state_dict().values(), whole.model.state_dict().values()))
    assert objectives == pytest.approx([sum(each[start : start + 4]) / 4 for start in (0, 4, 8)], rel=1e-5)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The outcome of an uninterrupted run with both ramp-ups."""
    return run(tmp_path_factory.mktemp("alone") / "base", both, **SHAPE).outcome


@pytest.mark.parametrize("step", [2, 5])
def test_a_killed_rampup_resumes_exactly(tmp_path, alone, step):
    run(tmp_path / "base", both, partial(kill_in_step, step=step), **SHAPE, save_steps=1)
    again = run(tmp_path / "base", both, **SHAPE, save_steps=1)
    assert f"resuming at step {step - 1}" in again.output
    assert again.outcome["weights"] == alone["weights"] and again.outcome["history"] == alone["history"]


def test_two_processes_make_the_same_updates_as_one(tmp_path):
    one = run(tmp_path / "one", no_dropout, both, **SHAPE, max_steps=6)
    two = run(
        tmp_path / "two", no_dropout, both, processes=2, **SHAPE | {"per_device_train_batch_size": 1}, max_steps=6
    )
    assert two.codes == [0, 0], two.output
    for mine, theirs in zip(one.outcome["history"], two.outcome["history"], strict=True):
        assert float.fromhex(theirs[1]) == pytest.approx(float.fromhex(mine[1]), rel=1e-3)
        assert float.fromhex(theirs[2]) == pytest.approx(float.fromhex(mine[2]), rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("config", ["ddp", "zero2", "zero3", "fsdp2"])
def test_every_engine_ramps_up_as_one_process_does(tiny_life, tmp_path, config):
    warmups = (
        "context_warmup={start: 32, steps: 6}",
        "batch_warmup={start: 256, steps: 6}",
        "training.logging_steps=1",
    )
    command = ("hf_llm.pretrain", "tiny.yaml", *(f"--pretrain.{warmup}" for warmup in warmups))
    alone, launched = prepare(tiny_life, tmp_path / "alone"), prepare(tiny_life, tmp_path / "launched")
    done = run_module(*command, folder=alone)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "from step 4 on: updates of 512 tokens, 2 per step" in done.stdout
    done = launch(config, *command, folder=launched)
    assert done.returncode == 0, done.stdout + done.stderr
    one, two = (losses(folder / "runs/tiny/base") for folder in (alone, launched))
    assert len(one) == 12 and two == pytest.approx(one, rel=1e-3)


def no_dropout(trainer):
    for layer in trainer.model.model.layers:
        layer.self_attn.attention_dropout = 0.0


def spoil_update(trainer, update: int, by: float) -> None:
    """Multiply the loss of the micro-batches of the `update`-th update of all, from 1."""
    made, compute = [0], trainer.compute_loss

    class Count(TrainerCallback):
        def on_optimizer_step(self, *args, **kwargs):
            made[0] += 1

    trainer.add_callback(Count())
    trainer.compute_loss = lambda *args, **kwargs: compute(*args, **kwargs) * (by if made[0] + 1 == update else 1)


def test_one_bad_update_of_a_step_is_dropped_and_the_others_are_made(tmp_path):
    same = {**SHAPE, "max_steps": 3, "logging_steps": 3}
    spoiled = partial(spoil_update, update=6, by=torch.nan)
    done = run(tmp_path / "bad", smaller_for_long, spoiled, **same)
    assert done.code == 0, done.output
    assert "step 2: loss or gradient not finite, update dropped (1 so far)" in done.output
    good = run(tmp_path / "good", smaller_for_long, **same)
    assert done.outcome["weights"] != good.outcome["weights"]
    ((_, bad_loss, _),), ((_, good_loss, _),) = done.outcome["history"], good.outcome["history"]
    assert float.fromhex(bad_loss) == pytest.approx(float.fromhex(good_loss), rel=0.02)


def test_a_spike_in_one_update_is_judged_by_the_updates_before(tmp_path):
    spikes = SpikeSection(sigma=6, window=16)
    spoiled = partial(spoil_update, update=23, by=30.0)
    done = run(tmp_path / "base", smaller_for_long, spoiled, **SHAPE, max_steps=8, spikes=spikes)
    assert "step 6: loss" in done.output and "update dropped (1 so far)" in done.output


def test_more_updates_in_a_step_are_no_spike(tmp_path):
    done = run(
        tmp_path / "base", smaller, **SHAPE, max_steps=12, spikes=SpikeSection(sigma=6, window=8), learning_rate=1e-4
    )
    assert done.code == 0 and "dropped" not in done.output


def test_what_cannot_be_cut_is_refused(tmp_path, monkeypatch):
    trainer = pretraining_trainer(tmp_path)
    trainer.model.config.is_encoder_decoder = True
    with pytest.raises(UserError, match="context_warmup: an encoder-decoder"):
        ContextRampup(trainer, Rampup(4, 6), 16)
    monkeypatch.setenv("PARALLELISM_CONFIG_PP_SIZE", "2")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"context_warmup does not run .* in a pipeline"):
        ContextRampup(trainer, Rampup(4, 6), 16)
    with pytest.raises(UserError, match="batch_warmup does not run in a pipeline"):
        BatchRampup(trainer, Rampup(64, 6), STEP)

import json

import numpy as np
import pytest
from transformers import TrainingArguments

from hf_llm.core.errors import UserError
from hf_llm.core.recipe import Settings
from hf_llm.data.tokens.token_dataset import TokenWindows
from hf_llm.training.arguments import build_training_arguments
from hf_llm.training.pretraining_trainer import PretrainingTrainer
from hf_llm.training.schedules import ScheduleCheck, add_curriculum_decay, decay_steps
from tests.tiny_models import tiny_model
from tests.tiny_recipe import losses, prepare, run_module


@pytest.fixture
def windows(tmp_path):
    """90 windows of 10 tokens, the last 20 of them a stage of their own."""
    np.arange(900, dtype=np.uint16).tofile(tmp_path / "train.bin")
    shard = {"file": "train.bin", "source": "web", "tokens": 900, "documents": 1, "bytes": 2700}
    row = {"source": "web", "tokens": 900}
    plan = [{**row, "stage": 0, "planned": 700, "passed": 0}, {**row, "stage": 1, "planned": 200, "passed": 700}]
    index = {"dtype": "uint16", "splits": {"train": [shard], "validation": [shard]}, "plan": plan}
    (tmp_path / "index.json").write_text(json.dumps(index))
    return TokenWindows(tmp_path, "train", 10)


def test_the_decay_begins_with_the_last_stage(windows):
    assert decay_steps(windows, windows_per_step=1, max_steps=90) == 20
    assert decay_steps(windows, windows_per_step=10, max_steps=9) == 2
    assert decay_steps(windows, windows_per_step=8, max_steps=11) == 2  # step 9 holds the last of stage 1 as well


def test_without_a_curriculum_nothing_is_said(windows, tmp_path):
    assert decay_steps(TokenWindows(tmp_path, "validation", 10), 1, 90) is None


def test_a_training_that_never_comes_to_the_last_stage_is_told_the_budget_to_set(windows):
    with pytest.raises(UserError, match=r"7 steps are 700 tokens.*begins after 700; set corpus.max_tokens=700"):
        decay_steps(windows, windows_per_step=10, max_steps=7)


def test_every_schedule_is_held_to_the_stages(windows, capsys):
    with pytest.raises(UserError, match=r"set corpus\.max_tokens=700"):
        add_curriculum_decay({"lr_scheduler_type": "cosine", "max_steps": 7}, windows, 10)
    assert add_curriculum_decay({"max_steps": 9}, windows, 10) == {"max_steps": 9}
    assert not capsys.readouterr().out
    assert add_curriculum_decay({"max_steps": 18}, windows, 10) == {"max_steps": 18}
    assert "stages end after 9 of 18 steps, and start again with the first" in capsys.readouterr().out
    assert add_curriculum_decay({"max_steps": -1}, windows, 10) == {"max_steps": -1}


def rates(folder, steps=100, **settings) -> list[float]:
    """The learning rate before each step, and after the last."""
    given = Settings({"learning_rate": 1e-2, "warmup_steps": 10, "report_to": "none", **settings})
    arguments = build_training_arguments(TrainingArguments, given, folder, 0, "pretrain")
    trainer = PretrainingTrainer(tiny_model(), arguments)
    trainer.create_optimizer_and_scheduler(steps)
    learning_rates = []
    for _ in range(steps + 1):
        learning_rates.append(trainer._get_learning_rate())
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    return learning_rates


@pytest.mark.parametrize(
    ("kind", "settings", "at_80", "at_the_end"),
    [
        ("linear", None, 2e-2 / 9, 0.0),
        ("cosine", None, 0.00116978, 0.0),
        ("constant_with_warmup", None, 1e-2, 1e-2),
        ("cosine_with_min_lr", None, 0.0020528, 1e-3),
        ("cosine_with_min_lr", {"min_lr": 5e-3}, 0.00558489, 5e-3),
        ("cosine_with_min_lr", {"min_lr_rate": 0.2}, 0.00293582, 2e-3),
        ("warmup_stable_decay", None, 1e-2, 0.0),
        ("warmup_stable_decay", {"num_decay_steps": 50, "decay_type": "linear"}, 4e-3, 0.0),
    ],
)
@pytest.mark.parametrize("max_steps", [100, -1])  # given, or derived from epochs
def test_rates_are_those_promised(tmp_path, kind, settings, at_80, at_the_end, max_steps):
    given = {"lr_scheduler_kwargs": settings} if settings else {}
    each = rates(tmp_path, lr_scheduler_type=kind, max_steps=max_steps, **given)
    assert each[0] == 0 and each[5] == pytest.approx(5e-3) and each[10] == 1e-2
    assert each[80] == pytest.approx(at_80, rel=1e-4)
    assert each[100] == pytest.approx(at_the_end, abs=1e-9)


def test_muon_and_adamw_follow_one_schedule(tmp_path):
    settings = {"lr_scheduler_type": "cosine_with_min_lr", "max_steps": 100}
    assert rates(tmp_path, optim="muon", **settings) == rates(tmp_path, **settings)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min": 0.1}}, "unexpected keyword.*'min'"),
        (
            {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr": 1e-5, "min_lr_rate": 0.1}},
            "Only one of min_lr or min_lr_rate",
        ),
    ],
)
def test_settings_that_a_schedule_does_not_take_are_named_before_any_work(tmp_path, settings, said):
    with pytest.raises(UserError, match=rf"pretrain\.training\.lr_scheduler_kwargs: .*{said}"):
        rates(tmp_path, **settings)


def test_a_stage_that_counts_in_epochs_is_asked_for_the_steps_of_its_decay(tmp_path):
    given = Settings({"lr_scheduler_type": "warmup_stable_decay", "report_to": "none"})
    with pytest.raises(UserError, match=r"sft.training.lr_scheduler_kwargs: .*needs num_decay_steps, or .*max_steps"):
        build_training_arguments(TrainingArguments, given, tmp_path, 0, "sft")
    arguments = build_training_arguments(TrainingArguments, Settings({**given, "max_steps": 50}), tmp_path, 0, "sft")
    assert arguments.lr_scheduler_kwargs == {"num_decay_steps": 10}


def test_a_decay_that_is_left_open_is_filled_in(windows):
    settings = {"lr_scheduler_type": "warmup_stable_decay", "max_steps": 90}
    assert add_curriculum_decay(settings, windows, 1)["lr_scheduler_kwargs"] == {"num_decay_steps": 20}
    shaped = {**settings, "lr_scheduler_kwargs": {"decay_type": "linear"}}
    assert add_curriculum_decay(shaped, windows, 1)["lr_scheduler_kwargs"] == {
        "decay_type": "linear",
        "num_decay_steps": 20,
    }
    one_epoch = {"lr_scheduler_type": "warmup_stable_decay", "num_train_epochs": 1}
    assert add_curriculum_decay(one_epoch, windows, 8)["lr_scheduler_kwargs"] == {"num_decay_steps": 3}


def test_what_the_recipe_says_itself_stays(windows, tmp_path):
    given = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 7}, "max_steps": 90}
    assert add_curriculum_decay(given, windows, 1) is given
    other = {"lr_scheduler_type": "cosine", "max_steps": 90}
    assert add_curriculum_decay(other, windows, 1) is other
    no_curriculum = {"lr_scheduler_type": "warmup_stable_decay", "max_steps": 2}
    assert add_curriculum_decay(no_curriculum, TokenWindows(tmp_path, "validation", 10), 1) is no_curriculum


@pytest.mark.slow
def test_the_learning_rate_of_a_pretraining_falls_over_the_last_stage(tiny_life, tmp_path):
    folder = prepare(tiny_life, tmp_path / "run", ("corpus", "tokenizer"))
    settings = (
        "--corpus.curriculum={by: mix, stages: [{share: 3, shares: {texts: 1}}, {share: 1, shares: {texts: 1}}]}",
        "--corpus.max_tokens=12288",
        "--pretrain.training.lr_scheduler_type=warmup_stable_decay",
        "--pretrain.training.logging_steps=1",
    )
    done = run_module("hf_llm.pretrain", "tiny.yaml", *settings, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    base = folder / "runs/tiny/base"
    rates, stages = losses(base, "learning_rate"), losses(base, "curriculum_stage")
    assert stages == [1] * 9 + [2] * 3
    assert rates[:10] == [3e-3] * 10 and rates[9] > rates[10] > rates[11]


def build_with_schedule(folder, **settings) -> TrainingArguments:
    settings = {"use_cpu": True, "report_to": "none", "bf16": False, **settings}
    return build_training_arguments(TrainingArguments, Settings(settings), folder, 0, "pretrain")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"max_steps": 50, "warmup_steps": 100},
            "pretrain.training.warmup_steps: .* warms up for 100 steps, .* has 50",
        ),
        (
            {
                "max_steps": 50,
                "warmup_steps": 20,
                "lr_scheduler_type": "warmup_stable_decay",
                "lr_scheduler_kwargs": {"num_decay_steps": 40},
            },
            "num_decay_steps: 40 steps of decay after 20 of warm-up are more than the 50 steps",
        ),
    ],
)
def test_a_schedule_longer_than_the_training_is_refused(tmp_path, settings, message):
    with pytest.raises(UserError, match=message):
        build_with_schedule(tmp_path, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"max_steps": 50, "warmup_steps": 50},
        {"max_steps": 50, "warmup_steps": 0.9},
        {"max_steps": 50, "warmup_steps": 100, "lr_scheduler_type": "constant"},
        {"num_train_epochs": 1, "warmup_steps": 100},  # the steps are not known yet
        {"max_steps": 50, "warmup_steps": 40, "lr_scheduler_type": "warmup_stable_decay"},
    ],
)
def test_a_schedule_that_fits_is_not(tmp_path, settings):
    assert build_with_schedule(tmp_path, **settings).warmup_steps == settings["warmup_steps"]


def test_a_warm_up_longer_than_the_epochs_is_refused_before_the_first_step(windows, tmp_path):
    arguments = TrainingArguments(
        tmp_path, use_cpu=True, num_train_epochs=1, warmup_steps=100, report_to="none", disable_tqdm=True
    )
    trainer = PretrainingTrainer(tiny_model(vocab_size=1000), arguments, train_dataset=windows)
    trainer.add_callback(ScheduleCheck("sft"))
    with pytest.raises(
        UserError, match=r"sft.training.warmup_steps: .* warms up for 100 steps, and the training has 12"
    ):
        trainer.train()
    assert trainer.state.global_step == 0

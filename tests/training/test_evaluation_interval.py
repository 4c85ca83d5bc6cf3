"""How often a training evaluates where the recipe does not say so, and what is said of short steps."""

import pytest
from transformers import TrainingArguments

from hf_llm.core.recipe import Settings
from hf_llm.training.arguments import (
    MAX_EVALUATION_SHARE,
    build_training_arguments,
    choose_evaluation_interval,
    describe_short_steps,
    evaluation_interval,
)


def build(folder, **settings) -> TrainingArguments:
    settings = {"use_cpu": True, "report_to": "none", "bf16": False, **settings}
    return build_training_arguments(TrainingArguments, Settings(settings), folder, 0, "pretrain", eval_strategy="steps")


@pytest.mark.parametrize("evaluation", [1, 1000, 1 << 20, 10**9])
@pytest.mark.parametrize("step", [512, 65_536, 1 << 22])
def test_evaluations_take_a_bounded_share_of_the_arithmetic(evaluation, step):
    interval = evaluation_interval(evaluation, step)
    assert evaluation / 3 <= MAX_EVALUATION_SHARE * interval * step
    assert interval == 1 or evaluation / 3 > MAX_EVALUATION_SHARE * (interval - 1) * step


def test_without_eval_steps_a_large_evaluation_is_rare(tmp_path, capsys):
    arguments = build(tmp_path, max_steps=1000)
    choose_evaluation_interval(arguments, Settings({}), 1 << 20, 65_536)
    assert arguments.eval_steps == 107
    assert "evaluating every 107 steps" in capsys.readouterr().out


def test_without_eval_steps_a_small_evaluation_comes_with_the_log(tmp_path):
    arguments = build(tmp_path, logging_steps=20)
    choose_evaluation_interval(arguments, Settings({}), 1000, 65_536)
    assert arguments.eval_steps == 20


@pytest.mark.parametrize("settings", [{"eval_steps": 3}, {"eval_steps": 0.25}, {"eval_strategy": "epoch"}])
def test_what_the_recipe_says_of_evaluations_stays(tmp_path, settings, capsys):
    arguments = build(tmp_path, **settings)
    before = arguments.eval_steps
    choose_evaluation_interval(arguments, Settings(settings), 1 << 20, 1024)
    assert arguments.eval_steps == before
    assert "evaluating every" not in capsys.readouterr().out


@pytest.mark.parametrize(("save_steps", "interval"), [(500, 125), (25, 25), (214, 107)])
def test_the_best_model_is_one_that_was_saved(tmp_path, save_steps, interval):
    settings = {"load_best_model_at_end": True, "save_steps": save_steps}
    arguments = build(tmp_path, **settings)
    choose_evaluation_interval(arguments, Settings(settings), 1 << 20, 65_536)
    assert arguments.eval_steps == interval
    assert arguments.save_steps % arguments.eval_steps == 0


def test_a_step_that_takes_fewer_tokens_is_told():
    assert describe_short_steps(64, 128, 128 * 8, -1) == ""  # eight whole steps
    assert describe_short_steps(70, 128, 128 * 8, 8) == ""  # the training ends before the short one
    assert (
        "the last step of each pass over the training split takes 768 tokens instead of 1,024"
        in describe_short_steps(70, 128, 128 * 8, 9)
    )
    assert "768 tokens instead of 1,024" in describe_short_steps(70, 128, 128 * 8, -1)
    small = describe_short_steps(238, 128, 65_536, 100)
    assert "tokens_per_step is 65,536, but the training split has 30,464 tokens" in small
    assert "each step takes all of them and no more" in small

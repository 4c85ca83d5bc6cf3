"""Benchmarks during training: in the log of each evaluation, and without any effect on the training."""

import json
import random

import numpy
import pytest
import torch

from hf_llm.core.errors import UserError
from hf_llm.evaluation.benchmark import NotRunError, score_shares
from hf_llm.monitoring.attach import attach_callbacks
from hf_llm.monitoring.callbacks.samples_section import SamplesSection
from hf_llm.monitoring.callbacks.tasks_section import TasksSection
from hf_llm.monitoring.callbacks.undisturbed import undisturbed_training
from tests.monitoring.tiny_training import NumberDrawer, Rows, tiny_model


class NextWord:
    """Which of two words is likelier after a document; draws random numbers as tasks do, and changes the mode."""

    group = ""

    def __init__(self, task):
        self.settings = {}
        self.models = []
        self.name = task.name
        self.documents = {str(number): (number % 60 + 1, number % 7 + 1, number % 5 + 8) for number in range(300)}
        self.limit = task.limit
        self.prompt_format = task.prompt_format

    def identify(self):
        return {}

    def read_texts(self):
        if self.name == "lost":
            raise NotRunError("its file has no column `answer`")
        for name in self.documents:
            yield name, []

    def score_documents(self, model, journal):
        random.random(), numpy.random.rand(), torch.rand(1)
        assert not model.model.training
        assert not torch.is_grad_enabled()
        assert not model.is_chat
        self.models.append(model)
        chosen = journal.select_documents(list(self.documents)[: self.limit])
        for start in range(0, len(chosen), 8):
            batch = chosen[start : start + 8]
            tokens = torch.tensor([[self.documents[name][0]] for name in batch])
            logits = model.model(input_ids=tokens).logits[:, -1]
            rows = []
            for name, row in zip(batch, logits, strict=True):
                right, wrong = self.documents[name][1:]
                rows.append({"id": name, "scores": {"acc": float(row[right] > row[wrong])}})
            journal.append(rows)
        model.model.train()

    def summarize(self, rows):
        values = [row["scores"]["acc"] for row in rows]
        return [score_shares(metric, values, choices=[2] * len(rows)) for metric in ("acc", "acc_norm,none")]


@pytest.fixture
def benchmarks(monkeypatch):
    """Every name of a task is this benchmark; returns those that were made."""
    made = []

    def find(task, task_data, runs_code, is_chat):
        made.append(NextWord(task))
        return made[-1:]

    monkeypatch.setattr("hf_llm.monitoring.callbacks.tasks.find_benchmarks", find)
    return made


def train(make_trainer, tokenizer, tasks=None, **arguments):
    rows = Rows([8] * 8, 8)
    settings = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, **arguments}
    trainer = make_trainer(rows, rows, tokenizer=tokenizer, **settings)
    draws = NumberDrawer()
    trainer.add_callback(draws)
    attach_callbacks(trainer, samples=SamplesSection(["w1"], max_new_tokens=2), tasks=tasks)
    trainer.train()
    return trainer, draws.drawn


def test_a_run_is_bit_equal_with_and_without_tasks(make_trainer, tokenizer, benchmarks):
    plain, plain_draws = train(make_trainer, tokenizer)
    scored, scored_draws = train(make_trainer, tokenizer, TasksSection(["quiz"], documents=20))
    for key in ("loss", "eval_loss", "grad_norm"):
        series = [
            [entry[key].hex() for entry in trainer.state.log_history if key in entry] for trainer in (plain, scored)
        ]
        assert len(series[0]) >= 3
        assert series[0] == series[1]
    assert plain_draws == scored_draws
    weights = scored.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in plain.model.state_dict().items())


def test_scores_stand_in_the_log_entry_of_each_evaluation(make_trainer, tokenizer, benchmarks, tmp_path, capsys):
    section = TasksSection(["quiz", "other (one)"], documents=20, every=2)
    trainer, _ = train(make_trainer, tokenizer, section)
    keys = {"eval_quiz_acc", "eval_quiz_acc_norm_none", "eval_other__one__acc", "eval_other__one__acc_norm_none"}
    rows = [json.loads(line) for line in (tmp_path / "out/logs/metrics.jsonl").read_text().splitlines()]
    for log in (rows, trainer.state.log_history):
        evaluations = [entry for entry in log if "eval_loss" in entry]
        assert [keys <= entry.keys() for entry in evaluations] == [True, False, True]
    # Nothing that was computed with the weights of another step is known to the next evaluation.
    assert all(len({id(model) for model in benchmark.models}) == 2 for benchmark in benchmarks)
    assert [benchmark.limit for benchmark in benchmarks] == [20, 20]
    assert {benchmark.prompt_format for benchmark in benchmarks} == {"plain"}
    printed = capsys.readouterr().out
    assert printed.count("quiz: acc ") == 2
    assert "20 documents" in printed


def test_the_best_model_can_be_chosen_by_a_task(make_trainer, tokenizer, benchmarks):
    trainer, _ = train(
        make_trainer,
        tokenizer,
        TasksSection(["quiz"], documents=20),
        save_strategy="best",
        metric_for_best_model="eval_quiz_acc",
    )
    values = [entry["eval_quiz_acc"] for entry in trainer.state.log_history if "eval_quiz_acc" in entry]
    assert trainer.state.best_metric == max(values)


def test_an_evaluation_outside_training_scores_no_task(make_trainer, tokenizer, benchmarks):
    rows = Rows([8] * 2, 8)
    trainer = make_trainer(rows, rows, tokenizer=tokenizer)
    attach_callbacks(trainer, tasks=TasksSection(["quiz"]))
    assert "eval_quiz_acc" not in trainer.evaluate()


def test_a_task_that_cannot_be_run_is_told_before_the_training(make_trainer, tokenizer, benchmarks):
    with pytest.raises(UserError, match=r"pretrain\.evaluate_tasks: lost cannot be run: its file has no column"):
        train(make_trainer, tokenizer, TasksSection(["quiz", "lost"]))


def test_a_task_that_fails_later_is_left_out_and_the_training_continues(make_trainer, tokenizer, benchmarks, capsys):
    class Failing(NextWord):
        def score_documents(self, model, journal):
            raise NotRunError("its prompts do not fit")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "hf_llm.monitoring.callbacks.tasks.find_benchmarks",
            lambda task, *_, **__: [Failing(task) if task.name == "long" else NextWord(task)],
        )
        trainer, _ = train(make_trainer, tokenizer, TasksSection(["long", "quiz"], documents=20))
    assert trainer.state.global_step == 6
    assert capsys.readouterr().out.count("long is left out from step 2 on: its prompts do not fit") == 1
    assert sum("eval_quiz_acc" in entry for entry in trainer.state.log_history) == 3


def test_undisturbed_training_restores_the_mode_of_every_module():
    model = tiny_model().train()
    model.model.layers[1].eval()  # a part that is not trained
    modes = [module.training for module in model.modules()]
    with pytest.raises(KeyboardInterrupt), undisturbed_training(model):
        assert not any(module.training for module in model.modules())
        raise KeyboardInterrupt
    assert [module.training for module in model.modules()] == modes
    assert len(set(modes)) == 2
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("wrong", [{"every": 0}, {"documents": 0}])
def test_settings_below_one_are_an_error(wrong):
    with pytest.raises(ValueError, match="at least 1"):
        TasksSection(["quiz"], **wrong)

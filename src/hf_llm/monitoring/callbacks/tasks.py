"""Score a model on a few documents of benchmarks while it trains; the scores stand in the log of each evaluation."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import Trainer, TrainerCallback

from hf_llm.core.console import print_main
from hf_llm.core.distributed import run_on_main
from hf_llm.core.errors import UserError
from hf_llm.evaluation.benchmark import Benchmark, NotRunError, Score, TaskSettings
from hf_llm.evaluation.benchmark_families import find_benchmarks
from hf_llm.evaluation.evaluated_model import EvaluatedModel
from hf_llm.evaluation.journal import MemoryJournal
from hf_llm.evaluation.run_benchmark import describe_scores
from hf_llm.monitoring.callbacks.samples import weights_are_sharded
from hf_llm.monitoring.callbacks.tasks_section import TasksSection
from hf_llm.monitoring.callbacks.undisturbed import undisturbed_training

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEY = "pretrain.evaluate_tasks"


class TaskCallback(TrainerCallback):
    """Score the tasks in every `tasks.every`-th evaluation, and add `eval_<task>_<metric>` to its log entry.

    The main process scores the same documents each time, and all processes log the scores, so that the best model can
    be chosen by one. The model's mode and the state of every random number generator are restored: a run is the same
    bit for bit with and without tasks. There are none under ZeRO-3, FSDP, tensor and pipeline parallelism, where no
    process holds all weights.

    Must come before the reporters among the callbacks, which log what it adds (`attach_callbacks` sees to that). Raises
    UserError for a task that nobody knows, or whose documents cannot be read.
    """

    def __init__(self, trainer: Trainer, section: TasksSection):
        self.trainer = trainer
        self.section = section
        self._evaluations = 0
        self._is_disabled = weights_are_sharded(trainer)
        self._benchmarks: list[Benchmark] = []
        if self._is_disabled:
            print_main("no tasks during training: no single process of this launch holds the weights")
        else:
            run_on_main(self._load_benchmarks)

    def on_train_begin(self, args, state, control, **kwargs):
        self._evaluations = 0

    def on_log(self, args, state, control, logs=None, model=None, **kwargs):
        if self._is_disabled or "eval_loss" not in logs or not self.trainer.is_in_train:
            return
        is_due = self._evaluations % self.section.every == 0
        self._evaluations += 1
        if is_due:
            values = run_on_main(lambda: self._score_tasks(model, state.global_step))
            logs.update(values)
            state.log_history[-1].update(values)  # Trainer.log has put a copy there already

    def _load_benchmarks(self) -> None:
        """Find the tasks and read their documents, so that what is wrong with them is told before the training."""
        folder = Path(self.section.task_data).expanduser() if self.section.task_data else None
        for name in self.section.tasks:
            task = TaskSettings(name=name, limit=self.section.documents, prompt_format="plain")
            try:
                for benchmark in find_benchmarks(task, folder, runs_code=False, is_chat=False):
                    next(iter(benchmark.read_texts()), None)
                    self._benchmarks.append(benchmark)
            except NotRunError as error:
                raise UserError(f"{KEY}: {name} cannot be run: {error}; correct that, or leave it out") from None

    def _score_tasks(self, model: torch.nn.Module, step: int) -> dict[str, float]:
        """Return the scores of every task by the names they are logged by, and print them."""
        # New each time: what benchmarks keep for a model was computed with other weights.
        evaluated = wrap_model_in_training(model, self.trainer.processing_class)
        values = {}
        for benchmark in list(self._benchmarks):
            try:
                with undisturbed_training(model):
                    scores = score_in_memory(benchmark, evaluated)
            except NotRunError as error:
                print_main(f"{KEY}: {benchmark.name} is left out from step {step} on: {error}")
                self._benchmarks.remove(benchmark)
                continue
            for score in scores:
                values[name_in_log(benchmark.name, score.metric)] = score.value
            print_main(f"[step {step}] {benchmark.name}: {describe_scores(scores)}")
        return values


def wrap_model_in_training(model: torch.nn.Module, tokenizer: "PreTrainedTokenizerBase") -> EvaluatedModel:
    """Return a model that is in memory, as benchmarks take it: all of it in this process, without a chat template."""
    evaluated = EvaluatedModel("training", "the model in training")
    evaluated.identity = "the model in training"
    evaluated.model = model
    evaluated.config = model.config
    evaluated.tokenizer = tokenizer
    evaluated.is_chat = False
    return evaluated


def score_in_memory(benchmark: Benchmark, model: EvaluatedModel) -> list[Score]:
    """Return the scores of a benchmark, whose scored documents are written nowhere."""
    journal = MemoryJournal()
    benchmark.score_documents(model, journal)
    return benchmark.summarize(journal.read())


def name_in_log(benchmark: str, metric: str) -> str:
    """Return the name by which a score is logged: `eval_hellaswag_acc_norm`."""
    letters = [letter if letter.isalnum() else "_" for letter in f"{benchmark}_{metric}"]
    return f"eval_{''.join(letters)}"

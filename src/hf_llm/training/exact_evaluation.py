"""Evaluate a model so that its numbers depend on neither the batch size nor the number of processes.

Trainer averages the means of batches, and so do TRL's trainers; what fills up the last batch of several processes
counts as well. Here each number is a sum over tokens, pairs or completions, divided by their number.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import gather_object
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler

from hf_llm.parallel.layout import read_layout
from hf_llm.training.fault_tolerance.determinism import fixed_random_state


class EvaluationBatches(Sampler[list[int]]):
    """Yield the row numbers of one process's batches, such that all processes have equally many rows in every step.

    `order` are the row numbers of the whole evaluation, `size` the rows of a batch, `group` how many neighbours must
    stay together. Where the rows at the end do not divide evenly among the `processes`, each process gets all of them,
    and `count_copies` says so: no row is added, and none is left out.
    """

    # accelerate cuts what it gathers from the last batch to the rows beyond a multiple of this: here, nothing.
    batch_size = 1

    def __init__(self, order: Sequence[int], size: int, processes: int = 1, rank: int = 0, group: int = 1):
        self.order = order
        self.size = math.ceil(size / group) * group
        self.processes = processes
        self.rank = rank
        self.group = group
        self._steps = self._plan_steps()

    def _plan_steps(self) -> list[tuple[int, int, int]]:
        """Return of each step the first row, the rows of this process, and how many processes have the same rows."""
        steps = []
        position = 0
        while position < len(self.order):
            rest = len(self.order) - position
            share = rest // (self.processes * self.group) * self.group
            if share:
                rows = min(self.size, share)
                steps.append((position + self.rank * rows, rows, 1))
                position += self.processes * rows
            else:
                rows = min(self.size, rest)
                steps.append((position, rows, self.processes))
                position += rows
        return steps

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[list[int]]:
        for start, rows, _ in self._steps:
            yield list(self.order[start : start + rows])

    def find_positions(self, step: int) -> range:
        """Return where in the whole `order` the rows of `step` (from 0) stand."""
        start, rows, _ = self._steps[step]
        return range(start, start + rows)

    def count_copies(self, step: int) -> int:
        """Return how many processes have the rows of `step` (from 0): 1, or all of them."""
        return self._steps[step][2]


class EvaluationSums:
    """Sums of what was measured, each with the number of what it was summed over."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, name: str, mean: Any, count: Any) -> None:
        """Add the `mean` of `count` tokens, pairs or completions; a mean of none, not a number, adds nothing."""
        count = float(count)
        if not count:
            return
        sum_and_count = self._sums.setdefault(name, [0.0, 0.0])
        sum_and_count[0] += float(mean) * count
        sum_and_count[1] += count

    def reduce(self) -> dict[str, tuple[float, float]]:
        """Return the mean over all processes and its count, by name; all processes call this together."""
        totals: dict[str, list[float]] = {}
        for sums in gather_object([self._sums]):
            for name, (value, count) in sums.items():
                total = totals.setdefault(name, [0.0, 0.0])
                total[0] += value
                total[1] += count
        return {name: (value / count, count) for name, (value, count) in totals.items()}


class ExactEvaluation:
    """Base class that makes a Trainer's evaluation exact; list it before the trainer.

    A subclass says how to measure a batch (`measure_batch`). An evaluation draws its own random numbers, the same each
    time, and leaves those of the training alone: the weights do not depend on how often it is evaluated.
    """

    logged_units: tuple[str, ...] = ("tokens",)
    """Which counts are logged beside the means, as `eval_tokens`."""
    evaluation_group = 1
    """How many rows of an evaluation's order must stay together."""

    _sums: EvaluationSums
    _batches: EvaluationBatches | None = None
    _evaluation_step = 0

    # ---- data

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return a loader of every row once (see `EvaluationBatches`), which draws no random number."""
        if isinstance(eval_dataset, str):
            eval_dataset = self.eval_dataset[eval_dataset]
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset

        collate = self.data_collator
        if isinstance(dataset, Dataset):
            dataset = self._remove_unused_columns(dataset, description="evaluation")
        else:
            collate = self._get_collator_with_removed_columns(collate, description="evaluation")
        return self.load_evaluation_rows(dataset, collate)

    def load_evaluation_rows(self, dataset: Any, collate: Callable) -> DataLoader:
        """Return the loader of this process's batches of `dataset`, put together by `collate`."""
        args = self.args
        sampler = self._get_eval_sampler(dataset)
        order = range(len(dataset)) if sampler is None else list(sampler)
        layout = read_layout()
        processes_per_batch = layout.processes // layout.data
        self._batches = EvaluationBatches(
            order, args.eval_batch_size, layout.data, args.process_index // processes_per_batch, self.evaluation_group
        )

        workers = {}
        if args.dataloader_num_workers:
            workers["prefetch_factor"] = args.dataloader_prefetch_factor
            workers["multiprocessing_context"] = args.dataloader_multiprocessing_context
        loader = DataLoader(
            dataset,
            batch_sampler=self._batches,
            collate_fn=collate,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            generator=torch.Generator().manual_seed(args.seed),  # otherwise it takes a number from torch's own
            **workers,
        )
        # The batches are this process's already.
        return prepare_data_loader(loader, args.device, num_processes=1, process_index=0, put_on_device=True)

    # ---- the loop

    def evaluate(self, *arguments: Any, **keywords: Any) -> dict[str, float]:
        """Evaluate as Trainer does; all random states are as before afterwards."""
        with fixed_random_state(self.args.seed + self.args.process_index, self.args.device):
            return super().evaluate(*arguments, **keywords)

    def evaluation_loop(self, *arguments: Any, metric_key_prefix: str = "eval", **keywords: Any) -> Any:
        """Run Trainer's loop, and put the exact means and counts into the metrics."""
        self._sums = EvaluationSums()
        self._evaluation_step = 0
        output = super().evaluation_loop(*arguments, metric_key_prefix=metric_key_prefix, **keywords)
        for name, value in self.summarize_evaluation().items():
            output.metrics[f"{metric_key_prefix}_{name}"] = value
        return output

    def prediction_step(
        self, model: torch.nn.Module, inputs: Any, prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, None, None]:
        """Measure a batch; Trainer gets its loss, and no logits."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.measure_batch(model, inputs)
        self._evaluation_step += 1
        return loss.detach().mean(), None, None

    @property
    def evaluation_copies(self) -> int:
        """How many processes measure the rows of the present batch."""
        layout = read_layout()
        copies = layout.processes // layout.data
        if self._batches is not None:
            copies *= self._batches.count_copies(self._evaluation_step)
        return copies

    def add_to_evaluation(self, name: str, mean: Any, count: Any) -> None:
        """Add the `mean` of `count` things in the present batch to the evaluation's `name`."""
        self._sums.add(name, mean, float(count) / self.evaluation_copies)

    def measure_batch(self, model: torch.nn.Module, inputs: Any) -> torch.Tensor:
        """Add what a batch measures to the sums (`add_to_evaluation`), loss and counts included; return the loss."""
        raise NotImplementedError

    def summarize_evaluation(self) -> dict[str, float]:
        """Return the means over the evaluation, and the counts of `logged_units`; all processes call this together."""
        summary = {}
        for name, (mean, count) in self._sums.reduce().items():
            summary[name] = round(count) if name in self.logged_units else mean
        return summary

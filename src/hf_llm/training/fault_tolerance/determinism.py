"""Draw the same random numbers again after a resume, and test whether a training's data are the same when they are read
again."""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy
import torch
from datasets import Dataset
from torch.utils.data import IterableDataset
from transformers import Trainer

from hf_llm.core.console import print_main


def warn_of_random_data(trainer: Trainer) -> None:
    """Print a warning where the first item, or the batch made of it, differs between two seeds.

    If it does, a resumed training sees other data than an uninterrupted one. All random states are restored.
    """
    random_part = _find_random_part(trainer)
    if random_part:
        print_main(
            f"the data draw random numbers: {random_part} each time. The training continues, but after an interruption "
            "it will not be the same. To make it so, draw from a generator seeded with the item's index."
        )


def _find_random_part(trainer: Trainer) -> str:
    """Return which of data set and collator depends on the seed, as a phrase; "" where none does."""
    data = trainer.train_dataset
    collate = trainer.data_collator
    if isinstance(data, IterableDataset):
        return ""

    # As in Trainer, columns that the model does not take are dropped by the data set or by the collator.
    if isinstance(data, Dataset):
        data = trainer._remove_unused_columns(data, description="training")
    else:
        collate = trainer._get_collator_with_removed_columns(collate, description="training")

    first_item = call_with_seed(lambda: data[0], seed=0)
    first_item_again = call_with_seed(lambda: data[0], seed=1)
    if not are_equal(first_item, first_item_again):
        return f"{type(data).__name__}[0] is another item"

    has_own_dataloader = type(trainer).get_train_dataloader is not Trainer.get_train_dataloader
    if has_own_dataloader:  # PPO collates the rows' numbers
        return ""

    batch = call_with_seed(lambda: collate([first_item]), seed=0)
    batch_again = call_with_seed(lambda: collate([first_item]), seed=1)
    if not are_equal(batch, batch_again):
        return f"the batch that {type(trainer.data_collator).__name__} makes of item 0 is another"
    return ""


def call_with_seed(function: Callable[[], Any], seed: int) -> Any:
    """Return `function()` with the generators of Python, numpy and torch (on the CPU) at `seed`; restore them after."""
    with fixed_random_state(seed, torch.device("cpu")):
        return function()


@contextmanager
def fixed_random_state(seed: int, device: torch.device) -> Iterator[None]:
    """Set the generators of Python, numpy and torch (on the CPU and on `device`) to `seed`; restore them at the end."""
    python_state = random.getstate()
    numpy_state = numpy.random.get_state()
    cuda_devices = [device] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=cuda_devices):
            random.seed(seed)
            numpy.random.seed(seed % 2**32)
            torch.default_generator.manual_seed(seed)
            if cuda_devices:
                torch.cuda.manual_seed(seed)
            yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)


def are_equal(first: Any, second: Any) -> bool:
    """Whether two items or batches hold the same values."""
    if isinstance(first, torch.Tensor):
        return first.shape == second.shape and torch.equal(first, second)
    if isinstance(first, numpy.ndarray):
        return numpy.array_equal(first, second)
    if isinstance(first, Mapping):
        return first.keys() == second.keys() and all(are_equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(are_equal, first, second))
    return first == second


def make_generator(device: torch.device, *numbers: int) -> torch.Generator:
    """Make a generator seeded by `numbers` alone, so that a resumed run draws what it would have drawn."""
    seed = int(numpy.random.SeedSequence(numbers).generate_state(1, numpy.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(seed)

"""Whether a training's data are the same when they are read again, as after a resume."""

import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy
import torch
from datasets import Dataset
from torch.utils.data import IterableDataset
from transformers import Trainer

from hf_llm.core.console import print_main


def check_repeatable(trainer: Trainer) -> None:
    """Say so where the first item, or the batch that is made of it, differs between two draws under different seeds.

    A resume then learns from other data than the run that nothing befell. All random states are put back.
    """
    data, collate = trainer.train_dataset, trainer.data_collator
    if isinstance(data, IterableDataset):
        return
    if isinstance(data, Dataset):
        data = trainer._remove_unused_columns(data, description="training")
    else:
        collate = trainer._get_collator_with_removed_columns(collate, description="training")
    items = [drawn(lambda: data[0], seed) for seed in (0, 1)]
    if not same(*items):
        found = f"{type(data).__name__}[0] is another item"
    elif type(trainer).get_train_dataloader is not Trainer.get_train_dataloader:  # PPO collates the rows' numbers
        return
    elif not same(*(drawn(lambda: collate([items[0]]), seed) for seed in (0, 1))):
        found = f"the batch that {type(trainer.data_collator).__name__} makes of item 0 is another"
    else:
        return
    print_main(
        f"the data draw random numbers: {found} each time. The training goes on, but after an interruption it will not "
        "be the one it would have been. Draw from a generator seeded with the item's index for that."
    )


def drawn(draw: Callable[[], Any], seed: int) -> Any:
    """What `draw()` returns with the generators of Python, numpy and torch (on the CPU) at `seed`, put back after."""
    python, array = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            random.seed(seed)
            numpy.random.seed(seed)
            torch.default_generator.manual_seed(seed)
            return draw()
    finally:
        random.setstate(python)
        numpy.random.set_state(array)


def same(one: Any, other: Any) -> bool:
    """Whether two items or batches hold the same values."""
    if isinstance(one, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, numpy.ndarray):
        return numpy.array_equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other

import random

import numpy
import pytest
import torch

from hf_llm.training.fault_tolerance.determinism import warn_of_random_data
from tests.training.fault_tolerance.faults import Sequences, tiny_trainer


class FromTorch(Sequences):
    def __getitem__(self, index):
        ids = torch.randint(0, 64, (16,))
        return {"input_ids": ids, "labels": ids}


class FromNumpy(Sequences):
    def __getitem__(self, index):
        ids = numpy.random.randint(0, 64, 16)
        return {"input_ids": ids, "labels": ids}


class FromPython(Sequences):
    def __getitem__(self, index):
        ids = [random.randrange(64) for _ in range(16)]
        return {"input_ids": ids, "labels": ids}


class MaskingCollator:
    """As masked language modelling has it."""

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, rows):
        batch = self.collate(rows)
        batch["labels"] = torch.where(torch.rand(batch["labels"].shape) < 0.5, batch["labels"], -100)
        return batch


@pytest.mark.parametrize("data", [FromTorch, FromNumpy, FromPython])
def test_a_data_set_that_draws_random_numbers_is_told(tmp_path, capsys, data):
    trainer = tiny_trainer(tmp_path)
    trainer.train_dataset = data()
    warn_of_random_data(trainer)
    printed = capsys.readouterr().out
    assert f"the data draw random numbers: {data.__name__}[0] is another item each time" in printed


def test_a_collator_that_does_is_told_too(tmp_path, capsys):
    trainer = tiny_trainer(tmp_path)
    trainer.data_collator = MaskingCollator(trainer.data_collator)
    warn_of_random_data(trainer)
    assert "the batch that MaskingCollator makes of item 0 is another each time" in capsys.readouterr().out


def test_nothing_is_said_of_others_and_no_generator_moves(tmp_path, capsys):
    trainer = tiny_trainer(tmp_path)
    before = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()
    warn_of_random_data(trainer)
    assert capsys.readouterr().out == ""
    after = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state()
    assert before[:2] == after[:2] and torch.equal(before[2], after[2])

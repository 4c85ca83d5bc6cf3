"""An evaluation's numbers: the same for any batch size and number of processes, and the means they are said to be."""

import json

import pytest
import torch
import torch.nn.functional as F

from hf_llm.core.labels import IGNORE_INDEX
from hf_llm.training.exact_evaluation import EvaluationBatches
from tests.posttraining.evaluations import KINDS, ROWS, causal, dpo, measure, measure_in_rank, sft
from tests.training.fault_tolerance.faults import forks, free_port


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Each kind's numbers of one process and one batch of all rows."""
    folder = tmp_path_factory.mktemp("whole")
    return {kind: measure(kind, folder / str(number), ROWS + 1) for number, kind in enumerate(KINDS)}


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_do_not_depend_on_the_batch_size(whole, tmp_path, kind):
    batch = 2
    assert len(whole[kind]) >= 2
    assert measure(kind, tmp_path, batch) == pytest.approx(whole[kind], rel=1e-4, abs=1e-5)


def test_the_numbers_of_two_processes_are_those_of_one(whole, tmp_path):
    port = free_port()
    ranks = [
        forks().Process(target=measure_in_rank, args=(tmp_path, list(KINDS), 2, rank, 2, port)) for rank in range(2)
    ]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(300)
        rank.kill()
    for rank in range(2):
        numbers = json.loads((tmp_path / f"rank-{rank}.json").read_text())
        for kind in KINDS:
            assert numbers[kind] == pytest.approx(whole[kind], rel=1e-4, abs=1e-5), kind


def test_a_causal_models_loss_is_the_mean_over_its_label_tokens(whole, tmp_path):
    trainer = causal(tmp_path, 1)
    total, tokens = 0.0, 0
    for row in trainer.eval_dataset:
        logits = trainer.model(input_ids=row["input_ids"][None]).logits[0, :-1]
        labels = row["labels"][1:]
        total += F.cross_entropy(logits, labels, reduction="sum").item()
        tokens += int((labels != IGNORE_INDEX).sum())
    assert whole["causal"]["eval_loss"] == pytest.approx(total / tokens, rel=1e-5)
    assert whole["causal"]["eval_tokens"] == tokens


def test_what_sft_measures_is_a_mean_over_supervised_tokens(whole, tmp_path):
    trainer = sft(tmp_path, 1)
    total, correct, tokens = 0.0, 0, 0
    for row in trainer.eval_dataset:
        logits = trainer.model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
        labels = torch.tensor(row["labels"])[1:]
        total += F.cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(-1) == labels).sum())
        tokens += int((labels != IGNORE_INDEX).sum())
    for kind in ("sft", "sft, packed"):
        assert whole[kind]["eval_loss"] == pytest.approx(total / tokens, rel=1e-4)
        assert whole[kind]["eval_mean_token_accuracy"] == pytest.approx(correct / tokens, rel=1e-5)
        assert whole[kind]["eval_tokens"] == tokens


def test_a_preference_accuracy_is_a_share_of_the_pairs(whole, tmp_path):
    for kind in ("dpo", "dpo, three losses"):
        assert whole[kind]["eval_pairs"] == ROWS
        correct = whole[kind]["eval_rewards/accuracies"] * ROWS
        assert correct == pytest.approx(round(correct), abs=1e-5)
    alone = [measure_pair(dpo(tmp_path / str(number), 1), number) for number in range(ROWS)]
    mean = sum(alone) / ROWS
    assert whole["dpo"]["eval_rewards/margins"] == pytest.approx(mean, rel=1e-4)


def measure_pair(trainer, number: int) -> float:
    """The margin of one pair alone."""
    trainer.eval_dataset = trainer.eval_dataset.select([number])
    return trainer.evaluate()["eval_rewards/margins"]


@pytest.mark.parametrize("processes", [1, 2, 3, 8])
@pytest.mark.parametrize(
    ("rows", "size", "group"), [(1, 4, 1), (7, 2, 1), (16, 4, 1), (14, 1, 2), (14, 4, 2), (30, 3, 3)]
)
def test_every_row_counts_once_and_all_processes_have_equally_many(rows, size, group, processes):
    plans = [EvaluationBatches(range(rows), size, processes, rank, group) for rank in range(processes)]
    batches = [list(plan) for plan in plans]
    assert len({len(plan) for plan in plans}) == 1

    counted = dict.fromkeys(range(rows), 0.0)
    for step in range(len(plans[0])):
        assert len({len(batch[step]) for batch in batches}) == 1
        for plan, batch in zip(plans, batches, strict=True):
            for row in batch[step]:
                counted[row] += 1 / plan.count_copies(step)
    assert counted == pytest.approx(dict.fromkeys(range(rows), 1.0))


@pytest.mark.parametrize("kind", ["causal", "sft", "dpo", "grpo", "ppo"])
def test_an_evaluation_draws_no_random_number_of_the_training(tmp_path, kind):
    import random

    import numpy

    trainer = KINDS[kind](tmp_path, 2)
    before = [torch.get_rng_state(), random.getstate(), numpy.random.get_state()[1]]
    trainer.evaluate()
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert (numpy.random.get_state()[1] == before[2]).all()

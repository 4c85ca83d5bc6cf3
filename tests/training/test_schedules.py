import json

import numpy as np
import pytest

from hf_llm.data.windows import TokenWindows
from hf_llm.errors import UserError
from hf_llm.training.schedules import decay_steps


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

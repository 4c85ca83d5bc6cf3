"""A Trainer around the tiny model."""

import pytest
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from tests.monitoring.tiny_training import tiny_model


@pytest.fixture
def make_trainer(tmp_path):
    """`make_trainer(rows, **arguments)`: a Trainer on the CPU that writes to `tmp_path/out` and logs every step."""

    def make(rows: Dataset, eval_rows: Dataset | None = None, tokenizer=None, **arguments) -> Trainer:
        settings = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "report_to": [],
            "disable_tqdm": True,
            "logging_steps": 1,
            "save_strategy": "no",
            "per_device_train_batch_size": 2,
            "learning_rate": 1e-2,
            "seed": 3,
        }
        return Trainer(
            model=tiny_model(),
            args=TrainingArguments(**{**settings, **arguments}),
            train_dataset=rows,
            eval_dataset=eval_rows,
            processing_class=tokenizer,
        )

    return make

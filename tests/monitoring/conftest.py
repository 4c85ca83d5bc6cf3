"""A Trainer around the tiny model."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerFast, Trainer, TrainingArguments

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


@pytest.fixture
def tokenizer():
    """Words `w1` to `w62` as tokens."""
    vocabulary = {"<pad>": 0, "<eos>": 63} | {f"w{i}": i for i in range(1, 63)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")

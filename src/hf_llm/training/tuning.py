"""What the stages that tune a model on rows share: their section's keys, and the trainer made of them."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from hf_llm.data.conversations import ConversationSource
from hf_llm.lifecycle import Making
from hf_llm.manifest import digest_of
from hf_llm.model.loading import load_model, load_tokenizer, stop_at_end_of_turn
from hf_llm.monitoring.reporters import reporters
from hf_llm.recipe import Settings
from hf_llm.tokenization.checks import check_tokenizer
from hf_llm.training.arguments import training_arguments
from hf_llm.training.ending import ROWS


@dataclass
class Tuning:
    """The keys that the sections of SFT, DPO and their kin have in common; each adds `training`."""

    data: list[ConversationSource]
    lora: Settings[LoraConfig] | None = None
    evaluation_share: float = field(default=0.05, metadata={"help": "share of the rows kept out for evaluation"})
    allow_drop: float = field(default=0.01, metadata={"help": "share of unusable rows above which this stops"})
    model: str | None = field(default=None, metadata={"help": "a model folder or Hub id to start from instead"})

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data is empty; name at least one source")
        if not 0 < self.evaluation_share < 1:
            raise ValueError(f"evaluation_share is {self.evaluation_share}; hold out a share between 0 and 1")
        if not 0 <= self.allow_drop < 1:
            raise ValueError(f"allow_drop is {self.allow_drop}; it is a share, from 0 to below 1")

    @property
    def licenses(self) -> list[str]:
        """The licences of the section's own data."""
        return [source.license for source in self.data]


def shared(rows: Dataset, folder: Path) -> Dataset:
    """The same rows on the disk, where every process and a resumed run find what TRL computes from them."""
    place = folder / digest_of(rows.to_list())
    if not place.exists():
        temporary = place.with_name(f"{place.name}.{os.getpid()}.tmp")
        rows.save_to_disk(temporary)
        temporary.rename(place)
    return load_from_disk(place)


def load_chat_model(start: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The language model at `start`, which stops where the tokenizer's turns end."""
    return stop_at_end_of_turn(load_model(start), tokenizer)


def tuning_trainer(
    trainer_class: type[Trainer],
    arguments_class: type[TrainingArguments],
    section: Tuning,
    making: Making,
    seed: int,
    start: str,
    rows: list[Dataset],
    load: Callable[[str, PreTrainedTokenizerBase], PreTrainedModel] = load_chat_model,
    task: str = "CAUSAL_LM",
    **defaults: Any,
) -> Trainer:
    """A TRL trainer of the model at `start` on `rows` (training, held out), with adapters where the section says so.

    `load` makes the model of `start`, `task` is the adapters' `task_type`. `defaults` are the stage's own training
    arguments and yield to the recipe's. Raises UserError for a tokenizer that chat models cannot be trained with, or
    arguments that do not go together.
    """
    tokenizer = load_tokenizer(start)
    check_tokenizer(tokenizer, chat=True)
    model = load(start, tokenizer)
    arguments = training_arguments(
        arguments_class,
        section.training,
        making.path,
        seed,
        making.folder,
        max_length=model.config.max_position_embeddings,
        report_to=reporters(section.training.get("report_to")),
        eval_strategy="epoch",
        **defaults,
    )
    with arguments.main_process_first(local=False, desc="writing the rows"):
        train, held_out = (shared(part, making.path / ROWS) for part in rows)
    return trainer_class(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=LoraConfig(**{"task_type": task, **section.lora}) if section.lora is not None else None,
    )

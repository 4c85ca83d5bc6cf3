"""Build one of TRL's trainers, or the PPO trainer, from a recipe section, a starting model and rows."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import Dataset, load_from_disk
from peft import LoraConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.core.format import one_line
from hf_llm.core.manifest import digest_of
from hf_llm.inference.generate import set_stop_tokens
from hf_llm.model.load import load_model
from hf_llm.monitoring.callbacks.integrations import choose_reporters
from hf_llm.pipeline.run import StageOutput
from hf_llm.posttraining.qlora import load_quantized
from hf_llm.posttraining.sections import PostTrainingSection
from hf_llm.posttraining.starting_model import check_not_adapter, load_chat_tokenizer
from hf_llm.tokenization.chat_encoding import special_token_texts
from hf_llm.training.arguments import build_training_arguments, choose_evaluation_interval
from hf_llm.training.train_and_save import ROWS_FOLDER

TEXT_COLUMNS = ("prompt", "chosen", "rejected", "completion", "messages")


def build_trainer(
    trainer_class: type[Trainer],
    arguments_class: type[TrainingArguments],
    section: PostTrainingSection,
    output: StageOutput,
    seed: int,
    rows: list[Dataset],
    load: Callable[[Path | str, PreTrainedTokenizerBase], PreTrainedModel] | None = None,
    task: str = "CAUSAL_LM",
    **defaults: Any,
) -> Trainer:
    """Build a trainer for the model at `output.start` on `rows` (training, evaluation), with adapters if requested.

    `load` loads the model (default: `load_chat_model`), `task` is the adapters' `task_type`. `defaults` are the stage's
    own training arguments; those of the recipe win. Raises UserError for a tokenizer that chat models cannot be trained
    with, or arguments that contradict each other.
    """
    start = output.start
    tokenizer = load_chat_tokenizer(start, output.path.parent)
    if section.lora is not None or task == "SEQ_CLS":
        check_not_adapter(start, output.folder)
    rows = drop_special_token_rows(rows, tokenizer, section.allow_drop)

    if section.quantize:
        model = load_quantized(start, section.quantize, output.folder)
        model = set_stop_tokens(model, tokenizer)
    else:
        model = (load or load_chat_model)(start, tokenizer)
    freeze_expert_biases(model)

    # Defaults for arguments that some of the trainers have.
    known_arguments = arguments_class.__dataclass_fields__
    if "max_length" in known_arguments:
        defaults = {"max_length": model.config.max_position_embeddings, **defaults}
    if "router_aux_loss_coef" in known_arguments:
        # Otherwise TRL would add the experts' balancing loss to the loss that it logs.
        defaults = {"router_aux_loss_coef": 0.0, **defaults}
    arguments = build_training_arguments(
        arguments_class,
        section.training,
        output.path,
        seed,
        output.folder,
        report_to=choose_reporters(section.training.get("report_to")),
        eval_strategy="epoch",
        **defaults,
    )

    rows_per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    choose_evaluation_interval(arguments, section.training, len(rows[1]), rows_per_step)

    with arguments.main_process_first(local=False, desc="writing the rows"):
        train, digest = cache_rows_on_disk(rows[0], output.path / ROWS_FOLDER)
        evaluation, _ = cache_rows_on_disk(rows[1], output.path / ROWS_FOLDER)

    peft_config = None
    if section.lora is not None:
        peft_config = LoraConfig(**{"task_type": task, **section.lora})
    try:
        trainer = trainer_class(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=evaluation,
            processing_class=tokenizer,
            peft_config=peft_config,
        )
    except (ValueError, NotImplementedError) as error:  # some arguments TRL checks only when it builds the trainer
        raise UserError(f"{output.folder}.training: {one_line(error)}") from error

    # For the fingerprint of checkpoints (`training_fingerprint`): TRL has replaced the rows by columns of its own.
    trainer.rows_digest = digest
    return trainer


def load_chat_model(start: Path | str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Load the language model at `start`; its generation stops where the tokenizer's turns end."""
    return set_stop_tokens(load_model(start), tokenizer)


def freeze_expert_biases(model: PreTrainedModel) -> None:
    """Freeze the biases that balance a mixture of experts.

    They get no gradient from TRL's losses, and DDP would wait for one.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("e_score_correction_bias"):
            parameter.requires_grad_(False)


def cache_rows_on_disk(rows: Dataset, folder: Path) -> tuple[Dataset, str]:
    """Write rows below `folder`, and return them as read from there, with their digest.

    TRL's own preprocessing of rows on disk is cached next to them, so that the other processes and a resumed run reuse
    it.
    """
    digest = digest_of(rows.to_list())
    path = folder / digest
    if not path.exists():
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        rows.save_to_disk(temporary)
        temporary.rename(path)
    return load_from_disk(path), digest


def drop_special_token_rows(
    rows: list[Dataset], tokenizer: PreTrainedTokenizerBase, allow_drop: float
) -> list[Dataset]:
    """Drop rows of messages in which someone typed the text of a special token, and print how many.

    TRL renders a chat to one string, in which a typed `<|im_end|>` would end the turn. Rows of token ids are kept as
    they are: `hf_llm.tokenization.chat_encoding` has encoded what was typed as plain text. Raises UserError where more
    than the share `allow_drop` of all rows would be dropped, or where no training or evaluation rows would be left.
    """
    names = rows[0].column_names
    columns = [name for name in TEXT_COLUMNS if name in names]
    if "input_ids" in names or not columns:
        return rows
    specials = special_token_texts(tokenizer)

    def is_plain(row: dict[str, Any]) -> bool:
        texts = [json.dumps(row[name], ensure_ascii=False) for name in columns]
        return not any(special in text for special in specials for text in texts)

    kept = []
    for part in rows:
        numbers = [number for number, row in enumerate(part) if is_plain(row)]
        kept.append(part.select(numbers))
    total = sum(map(len, rows))
    dropped = total - sum(map(len, kept))

    summary = f"{dropped:,} of {total:,} rows contain the text of a special token ({', '.join(specials[:4])})"
    if dropped > allow_drop * total or not all(map(len, kept)):
        share = math.ceil(100 * dropped / total) / 100
        raise UserError(
            f"{summary}, which would end a turn within a message; remove it (messages stand in lists, without a "
            f"template's marks), or write `allow_drop: {share}` to continue without them"
        )
    if dropped:
        print_main(f"{summary} and were dropped")
    return kept

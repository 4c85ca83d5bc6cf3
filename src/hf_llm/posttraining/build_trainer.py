"""Build one of TRL's trainers, or the PPO trainer, from a recipe section, a starting model and rows."""

import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import (
    Dataset,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
    load_from_disk,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.core.format import one_line
from hf_llm.core.manifest import digest_of
from hf_llm.inference.generate import set_stop_tokens
from hf_llm.model.adapters import is_adapter
from hf_llm.model.load import load_model
from hf_llm.monitoring.callbacks.integrations import choose_reporters
from hf_llm.pipeline.run import StageOutput
from hf_llm.posttraining.learning_rates import default_learning_rate, describe_learning_rate
from hf_llm.posttraining.lora import build_lora_config, check_lora_fits
from hf_llm.posttraining.qlora import keep_adapter_in_float32, load_quantized
from hf_llm.posttraining.rows.held_out import describe_held_out
from hf_llm.posttraining.sections import PostTrainingSection
from hf_llm.posttraining.start_check import StartCheck
from hf_llm.posttraining.starting_model import check_not_adapter, load_chat_tokenizer
from hf_llm.tokenization.chat_encoding import adapt_tool_calls, special_token_texts, tool_support
from hf_llm.training.arguments import build_training_arguments, choose_evaluation_interval
from hf_llm.training.step_choice import choose_step
from hf_llm.training.train_and_save import ROWS_FOLDER

# The folder, among the cached rows, of a starting model that was an adapter.
MERGED_START = "start"

MAX_TIMED_TOKENS = 1024  # of a pass that is timed to choose the precision

TEXT_COLUMNS = ("prompt", "chosen", "rejected", "completion", "messages", "tools")


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
    uses_lora = section.lora is not None
    tokenizer = load_chat_tokenizer(start, output.path.parent)
    if uses_lora:
        check_not_adapter(start, output.folder)
    rows = drop_special_token_rows(rows, tokenizer, section.allow_drop)
    check_tools_rendered(rows, tokenizer)
    rows = [adapt_rows(part, tokenizer) for part in rows]
    print_main(describe_held_out(*map(len, rows), section.evaluation_share))

    if section.quantize:
        model = load_quantized(start, section.quantize, output.folder, section.training)
        model = set_stop_tokens(model, tokenizer)
    else:
        model = (load or load_chat_model)(start, tokenizer)
    freeze_expert_biases(model)
    if uses_lora:
        reads_output_layer = output.folder != "ppo"  # the only stage whose loss is not TRL's
        check_lora_fits(section.lora, model.config, output.folder, task, reads_output_layer)

    # Defaults for arguments that some of the trainers have.
    known_arguments = arguments_class.__dataclass_fields__
    if "max_length" in known_arguments:
        defaults = {"max_length": model.config.max_position_embeddings, **defaults}
    if "router_aux_loss_coef" in known_arguments:
        # Otherwise TRL would add the experts' balancing loss to the loss that it logs.
        defaults = {"router_aux_loss_coef": 0.0, **defaults}
    if "learning_rate" not in section.training:
        parameters = model.num_parameters()
        defaults = {"learning_rate": default_learning_rate(output.folder, parameters, uses_lora), **defaults}
        print_main(describe_learning_rate(output.folder, parameters, uses_lora))
    prefers_bf16 = None
    if not section.quantize:
        # Timed as in pretraining, of which it is mostly read; how many rows a step has is the recipe's.
        context = min(model.config.max_position_embeddings, MAX_TIMED_TOKENS)
        prefers_bf16 = choose_step(model, section.training, output.path, context, MAX_TIMED_TOKENS // context).bf16
    arguments = build_training_arguments(
        arguments_class,
        section.training,
        output.path,
        seed,
        output.folder,
        prefers_bf16,
        report_to=choose_reporters(section.training.get("report_to")),
        eval_strategy="epoch",
        **defaults,
    )

    rows_per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    choose_evaluation_interval(arguments, section.training, len(rows[1]), rows_per_step)

    with arguments.main_process_first(local=False, desc="writing the rows"):
        train, digest = cache_rows_on_disk(rows[0], output.path / ROWS_FOLDER)
        evaluation, _ = cache_rows_on_disk(rows[1], output.path / ROWS_FOLDER)
        if is_adapter(start):
            save_merged_start(model, output.path / ROWS_FOLDER / MERGED_START)

    peft_config = build_lora_config(section.lora, task, output.folder) if uses_lora else None
    set_seed(seed)  # for the adapter's weights
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

    if section.quantize:
        keep_adapter_in_float32(trainer.model)
    trainer.add_callback(StartCheck(trainer, output.folder, section.has_reference))

    # For the fingerprint of checkpoints (`training_fingerprint`): TRL has replaced the rows by columns of its own.
    trainer.rows_digest = digest
    return trainer


def load_chat_model(start: Path | str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """Load the language model at `start`; its generation stops where the tokenizer's turns end."""
    return set_stop_tokens(load_model(start), tokenizer)


def save_merged_start(model: PreTrainedModel, folder: Path) -> None:
    """Save a model that was an adapter and its base, and let its config name the folder.

    TRL loads its reference from there; the base alone would be another model.
    """
    if not (folder / "config.json").exists():
        temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        model.save_pretrained(temporary)
        temporary.rename(folder)
    model.name_or_path = str(folder)
    model.config.name_or_path = str(folder)


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
        with without_progress_bars():
            rows.save_to_disk(temporary)
        temporary.rename(path)
    return load_from_disk(path), digest


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Let datasets draw no progress bars within the block: those of writing rows are drawn however short it takes."""
    were_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_disabled:
            enable_progress_bars()


def check_tools_rendered(rows: list[Dataset], tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where rows have tools, or calls of them, that the chat template would silently leave out."""
    support = tool_support(tokenizer)
    texts = [name for name in TEXT_COLUMNS if name != "tools"]
    for part in rows:
        names = [name for name in texts if name in part.column_names]
        has_calls = any(message.get("tool_calls") for name in names for turns in part[name] for message in turns)
        has_tools = "tools" in part.column_names and any(part["tools"])
        if (has_calls and not support.renders_calls) or (has_tools and not support.renders_tools):
            raise UserError(
                "some rows have tools or tool calls, which the model's chat template does not render; leave these rows "
                "out, or start from a model whose template does (`tokenizer.chat_template: chatml` for a run's own)"
            )


def adapt_rows(rows: Dataset, tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Give the tool calls of messages to TRL, which renders them, as the chat template expects them."""
    columns = {}
    for name in TEXT_COLUMNS:
        if name in rows.column_names and name != "tools":
            columns[name] = [adapt_tool_calls(tokenizer, messages) for messages in rows[name]]
    if all(list(rows[name]) == adapted for name, adapted in columns.items()):
        return rows
    others = {name: rows[name][:] for name in rows.column_names if name not in columns}
    table = {**others, **columns}
    return Dataset.from_dict({name: table[name] for name in rows.column_names}, on_mixed_types="use_json")


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

"""Say before a run how long its trainings will take, before there is a corpus, a tokenizer or a model.

The base model is built with random weights, and steps of it are timed on batches of the shapes that each training will
have. Until there is a tokenizer, the tokens of rows are estimated from their characters.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedConfig

from hf_llm.core.format import format_estimate
from hf_llm.hardware.runtime import autocast_type, keep_freed_memory, use_all_cores
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.setting_kinds import DEFAULT_ACCUMULATION, DEFAULT_EPOCHS, DEFAULT_MICRO_BATCH
from hf_llm.pipeline.stages import MODELS, STAGES
from hf_llm.planning.memory_estimate import build_planned_model, build_planning_arguments
from hf_llm.planning.stage_plans import PLANNED_FROM_ROWS, count_equivalent_tokens
from hf_llm.posttraining.build_trainer import MAX_TIMED_TOKENS
from hf_llm.preflight.posttraining_checks import read_first_rows
from hf_llm.training.arguments import list_micro_batches, split_batch
from hf_llm.training.batch_rampup import first_step_updates
from hf_llm.training.fault_tolerance.checkpoints import all_checkpoints, checkpoint_step
from hf_llm.training.step_choice import measure_step
from hf_llm.training.training_time import (
    FORWARD_SHARE,
    SAMPLED_BATCHES,
    TRL_STEP_FACTOR,
    BatchShape,
    average_shape,
    can_time_here,
    is_quick,
    time_step,
)

# Assumed of the tokens of rows where there is no tokenizer yet.
CHARS_PER_TOKEN = 4.0
MARKS_PER_MESSAGE = 6  # tokens of the chat template
MESSAGE_COLUMNS = ("messages", "prompt", "chosen", "rejected", "completion")

# Seconds of a stage that trains, beside its steps: libraries, model and rows are loaded, the model is saved. Measured
# with recipes/quickstart.yaml.
PRETRAINING_STAGE_SECONDS = 2.0
TUNING_STAGE_SECONDS = 4.0


def describe_run_time(run: Run, recipes: Mapping[str, Any], config: PreTrainedConfig | None, context: int) -> str:
    """Return a line on how long the trainings of `recipes` (by folder) will take, and what is not in that.

    `config` and `context` are those of the base model, None and 0 where they are not known. Of a training that has been
    begun, what is left counts. Empty where nothing is to be trained.
    """
    trainings = [folder for folder in recipes if folder in MODELS]
    if not trainings:
        return ""
    if not can_time_here() or config is None or not context:
        return "how long the trainings take shows in their logs after the first steps"

    use_all_cores()
    keep_freed_memory()
    sizes = list_timed_sizes(recipes, config, context)
    seconds = {}
    for folder in trainings:
        stage_seconds = None
        if folder == "base":
            stage_seconds = estimate_pretraining(recipes[folder], config, sizes)
        elif folder in PLANNED_FROM_ROWS:
            stage_seconds = estimate_tuning(folder, recipes[folder], config, sizes)
        if stage_seconds is not None:
            begin_and_end = PRETRAINING_STAGE_SECONDS if folder == "base" else TUNING_STAGE_SECONDS
            seconds[folder] = stage_seconds * share_left(run.folder(folder), recipes[folder]) + begin_and_end
    return format_run_time(seconds, list(recipes))


def share_left(folder: Path, recipe: Any) -> float:
    """Return the share of a training that its newest checkpoint leaves; 1 where there is none, or no `max_steps`."""
    section = recipe.pretrain if folder.name == "base" else getattr(recipe, folder.name)
    steps = section.training.get("max_steps") or 0
    made = max((checkpoint_step(path) for path in all_checkpoints(folder)), default=0)
    return max(0.0, 1 - made / steps) if steps > 0 else 1.0


def format_run_time(seconds: Mapping[str, float], folders: list[str]) -> str:
    """Return `training takes about 1 min 44 s on this machine: base 1 min 29 s, sft 15 s`, and what is not in it.

    `seconds` are those of the folders whose time is known, `folders` all that are to be made.
    """
    unknown = [folder for folder in folders if folder in MODELS and folder not in seconds]
    others = [folder for folder in folders if folder not in MODELS and folder in STAGES]
    if not seconds:
        return f"how long {', '.join(unknown)} will take shows in the log after the first steps"

    parts = ", ".join(f"{folder} {format_estimate(value)}" for folder, value in seconds.items())
    text = f"training takes about {format_estimate(sum(seconds.values()))} on this machine: {parts}"
    if unknown:
        text += f"; not known before: {', '.join(unknown)}"
    if others:
        text += f"; the time of {', '.join(others)} is not in it"
    return text


@dataclass(frozen=True)
class TimedSizes:
    """The passes by which the precision is chosen: those of the pretraining, where there is one."""

    context: int
    micro_batch: int
    others: list[int]


def list_timed_sizes(recipes: Mapping[str, Any], config: PreTrainedConfig, context: int) -> TimedSizes:
    """Return the passes that the first training of a run will time, so that they are timed once."""
    if "base" not in recipes:
        context = min(context, MAX_TIMED_TOKENS)
        return TimedSizes(context, MAX_TIMED_TOKENS // context, [])
    section = recipes["base"].pretrain
    updates = first_step_updates(section.tokens_per_step, section.batch_warmup)
    split = split_batch(section.tokens_per_step, context, section.training, "pretrain", updates)
    others = list_micro_batches(split, section.training, updates)
    return TimedSizes(context, split["per_device_train_batch_size"], others)


def estimate_pretraining(recipe: Any, config: PreTrainedConfig, sizes: TimedSizes) -> float | None:
    """Estimate the seconds of the pretraining with its evaluations; None where the steps or their time are unknown."""
    section = recipe.pretrain
    context = sizes.context
    steps = section.training.get("max_steps")
    if not steps or steps < 0 or not is_quick(config, BatchShape(1, context)):
        return None
    model = build_planned_model(config)
    choice = measure_step(model, section.training, context, sizes.micro_batch, sizes.others)
    updates = first_step_updates(section.tokens_per_step, section.batch_warmup)
    split = split_batch(section.tokens_per_step, context, section.training, "pretrain", updates, choice.micro_batch)

    shape = BatchShape(split["per_device_train_batch_size"], context)
    if not is_quick(model, shape):
        return None
    arguments = build_planning_arguments(section.training)
    timed = time_step(model, arguments, shape, autocast_type(section.training, choice.bf16))
    equivalent_steps = count_equivalent_tokens(section, steps) / section.tokens_per_step
    step_seconds = timed.of_step(split["gradient_accumulation_steps"])
    return steps * step_seconds + (equivalent_steps - steps) * (step_seconds - timed.update)


def estimate_tuning(folder: str, recipe: Any, config: PreTrainedConfig, sizes: TimedSizes) -> float | None:
    """Estimate the seconds of a training on rows.

    None where it starts from another model than `config`'s, where the number of steps depends on rows that have not all
    been read, and where a step takes too long to be timed.
    """
    section = getattr(recipe, folder)
    training = section.training
    first_rows = read_first_rows(folder, section, recipe.seed)
    if first_rows is None or section.model is not None:
        return None
    (train, evaluation), is_whole = first_rows
    micro_batch = training.get("per_device_train_batch_size") or DEFAULT_MICRO_BATCH
    accumulation = training.get("gradient_accumulation_steps") or DEFAULT_ACCUMULATION
    if not isinstance(micro_batch, int) or not isinstance(accumulation, int) or section.quantize:
        return None
    steps = training.get("max_steps", -1)
    if steps <= 0 and not is_whole:
        return None
    if steps <= 0:
        epochs = training.get("num_train_epochs", DEFAULT_EPOCHS)
        steps = math.ceil(len(train) / (micro_batch * accumulation) * epochs)

    texts = STAGES[folder].texts_per_row or 1
    shape = estimate_shape(train, micro_batch, texts)
    if not is_quick(config, shape):
        return None
    model = build_planned_model(config, lora=section.lora)
    bf16 = False
    if training.get("bf16") is None:
        unadapted = build_planned_model(config)
        bf16 = measure_step(unadapted, training, sizes.context, sizes.micro_batch, sizes.others).bf16
    arguments = build_planning_arguments(training)
    timed = time_step(model, arguments, shape, autocast_type(training, bf16))

    # A reference scores every row: once before the training, or in each step where there are adapters.
    forward_of_row = FORWARD_SHARE * timed.forward_and_backward / micro_batch
    seconds = steps * timed.of_step(accumulation) * TRL_STEP_FACTOR
    if STAGES[folder].scores_reference:
        scored_rows = steps * micro_batch * accumulation if section.lora is not None else len(train) + len(evaluation)
        seconds += scored_rows * forward_of_row
    epochs_made = max(1, math.ceil(steps * micro_batch * accumulation / max(1, len(train))))
    return seconds + epochs_made * len(evaluation) * forward_of_row


def estimate_shape(rows: Dataset, micro_batch: int, texts: int) -> BatchShape:
    """Estimate the mean shape of micro-batches: a row is `texts` texts, each padded to the longest of its batch."""
    shapes = []
    for batch in range(SAMPLED_BATCHES):
        first = batch * max(1, len(rows) - micro_batch) // SAMPLED_BATCHES
        lengths = [estimate_tokens(rows[(first + number) % len(rows)]) for number in range(micro_batch)]
        shapes.append((micro_batch * texts, max(lengths)))
    return average_shape(shapes)


def estimate_tokens(row: Mapping[str, Any]) -> int:
    """Estimate the tokens of a row: of a text, of messages, or of a prompt with its longest answer."""
    if row.get("text"):
        return max(1, round(len(row["text"]) / CHARS_PER_TOKEN))
    lengths = {}
    for column in MESSAGE_COLUMNS:
        messages = row.get(column) or []
        characters = sum(len(str(message.get("content") or "")) for message in messages)
        lengths[column] = characters / CHARS_PER_TOKEN + MARKS_PER_MESSAGE * len(messages)
    answers = max(lengths["chosen"], lengths["rejected"], lengths["completion"])
    return max(1, round(lengths["messages"] + lengths["prompt"] + answers))

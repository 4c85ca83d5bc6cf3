"""Choose on a CPU, by a short measurement, what a step computes in and how it is split: bf16 or float32, micro-batch.

Which is faster depends on processor and model: units for bf16 make wide models faster, while a narrow one spends more
time on the conversions than it wins. What was measured is kept for this machine in the user's cache folder. What was
chosen is written to `step.json` in the stage's folder: a resume reads it there, so that its arithmetic is the same,
and later stages of a run read it for a model of the same shapes. A value in the recipe's `training` section wins.
"""

import copy
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_llm.core.console import is_main_process, print_main
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import STEP_FILE, digest_of, write_json
from hf_llm.hardware.measurement_cache import describe_machine, keep_measurement, read_measurement
from hf_llm.hardware.runtime import (
    choose_precision,
    device_type,
    has_bf16,
    is_launched_in_fp8,
    keep_freed_memory,
    use_all_cores,
)
from hf_llm.model.summary import flops_per_token
from hf_llm.parallel.layout import is_engine_enabled
from hf_llm.pipeline.stages import STAGES
from hf_llm.training.step_timing import TimedModel

BY_RULE = "HF_LLM_STEP_BY_RULE"  # set to 1, nothing is measured: trainings that are compared compute alike

# bf16 rounds more than float32, and another micro-batch changes the last bits: what is gained has to be worth it.
LEAST_GAIN_OF_BF16 = 1.20
LEAST_GAIN_OF_MICRO_BATCH = 1.05

MAX_PASS_FLOPS = 3e10  # of a timed pass: about a quarter of a second on two cores
MAX_WINDOW_FLOPS = 1e11  # a model whose single window takes more is not timed
SECONDS_OF_ROUNDS = 0.6  # for the timed passes of each question, the first ones not counted
MIN_ROUNDS = 2
MAX_ROUNDS = 6


@dataclass(frozen=True)
class PassTime:
    """A measured forward and backward pass."""

    bf16: bool
    windows: int
    seconds: float
    """Of the fastest pass."""

    @property
    def seconds_per_window(self) -> float:
        return self.seconds / self.windows

    @property
    def precision(self) -> str:
        return "bf16" if self.bf16 else "float32"


@dataclass(frozen=True)
class StepChoice:
    """What a step of a training computes in, and how it is split."""

    bf16: bool
    """Whether matrix products are made in bf16 by autocast, rather than in the weights' float32."""
    micro_batch: int
    """Windows or rows of one forward and backward pass."""
    pass_times: tuple[PassTime, ...] = ()
    """What the choice rests on; empty where it was made by rule or by the recipe."""


def choose_step(
    model: PreTrainedModel,
    settings: dict[str, Any],
    folder: Path,
    context: int,
    micro_batch: int,
    other_micro_batches: Sequence[int] = (),
) -> StepChoice:
    """Choose precision and micro-batch for the training that writes to `folder`, print what it rests on, and record it.

    `micro_batch` windows of `context` tokens are what is taken by rule; `other_micro_batches` may be taken instead.
    `settings` are those of the recipe's `training` section, which win. Nothing is measured on a GPU, in a launch of
    several processes, for models whose passes are long, where the recipe has decided, and where the environment has
    HF_LLM_STEP_BY_RULE=1: then the rules hold (bf16 where there are units for it). The random state and the model stay
    as they are.
    """
    device = "cpu" if settings.get("use_cpu") else device_type()
    by_rule = StepChoice(choose_precision(settings, has_bf16(device))["bf16"], micro_batch)
    if settings.get("per_device_train_batch_size"):
        other_micro_batches = ()
    is_decided = settings.get("bf16") is not None and not other_micro_batches
    is_checked_only = folder.name not in STAGES  # a stand-in's trainer, which will not train
    is_switched_off = os.environ.get(BY_RULE) == "1"
    if is_decided or is_checked_only or is_switched_off or not can_measure_here(settings):
        return by_rule

    shapes = digest_shapes(model)
    record = read_step_record(folder, shapes)
    if record is not None:
        return _apply_record(record, folder, settings, by_rule, other_micro_batches)
    is_begun = any(folder.glob("checkpoint-*"))  # by a version that measured nothing
    if is_begun or not is_alone():
        return by_rule

    choice = measure_step(model, settings, context, micro_batch, other_micro_batches)
    if choice.pass_times and is_main_process():
        print_main(describe_choice(choice, context))
        write_step_record(folder, choice, shapes)
    return choice


def can_measure_here(settings: dict[str, Any]) -> bool:
    """Whether a CPU trains the whole model here, in a precision that is left to choose."""
    has_engine = is_engine_enabled("DEEPSPEED") or is_engine_enabled("FSDP")
    return device_type() == "cpu" and not settings.get("fp16") and not is_launched_in_fp8() and not has_engine


def is_alone() -> bool:
    """Whether this process is the only one of its launch."""
    return int(os.environ.get("WORLD_SIZE", "1")) == 1


def measure_step(
    model: PreTrainedModel,
    settings: dict[str, Any],
    context: int,
    micro_batch: int,
    other_micro_batches: Sequence[int] = (),
) -> StepChoice:
    """Choose precision and micro-batch by what is measured now, or was measured before on this machine.

    Without `pass_times` in the result nothing was measured, since nothing was to be chosen or a pass takes too long.
    """
    use_all_cores()
    keep_freed_memory()
    units = has_bf16("cpu")
    by_rule = choose_precision(settings, units)["bf16"]
    precisions = [by_rule]
    if units and settings.get("bf16") is None:
        precisions = [False, True]

    window_flops = context * flops_per_token(model, context)
    affordable = max(1, int(MAX_PASS_FLOPS / window_flops))
    timed_windows = min(micro_batch, affordable)
    others = [windows for windows in other_micro_batches if max(windows, micro_batch) <= affordable]
    has_choice = len(precisions) > 1 or others
    if not has_choice or window_flops > MAX_WINDOW_FLOPS or not can_measure_here(settings):
        return StepChoice(by_rule, micro_batch)
    question = {
        "what": "forward and backward pass, 1",
        "shapes": digest_shapes(model),
        "context": context,
        "windows": [timed_windows, *others],
        "precisions": precisions,
    }
    answer = read_measurement(question)
    if answer is None:
        pass_times = time_choices(model, context, precisions, timed_windows, others)
        keep_measurement(question, [asdict(pass_time) for pass_time in pass_times])
    else:
        pass_times = [PassTime(**entry) for entry in answer]
    return pick_fastest(pass_times, timed_windows, micro_batch)


def time_choices(
    model: PreTrainedModel, context: int, precisions: list[bool], windows: int, others: Sequence[int]
) -> list[PassTime]:
    """Time passes of `windows` in each precision, then passes of the `others` in the precision that was chosen."""
    with torch.random.fork_rng(devices=[]):
        timed = TimedModel(copy.deepcopy(model))
        pass_times = time_passes(timed, context, [(bf16, windows) for bf16 in precisions])
        bf16 = pick_fastest(pass_times, windows, windows).bf16
        if others:
            pass_times += time_passes(timed, context, [(bf16, other) for other in others])
    return pass_times


def time_passes(timed: TimedModel, context: int, variants: list[tuple[bool, int]]) -> list[PassTime]:
    """Return the fastest pass of each variant (bf16, windows). They are timed in turn, since other programs may run."""
    fastest = {}
    for bf16, windows in variants:
        timed.run_pass(windows, context, torch.bfloat16 if bf16 else None)  # sets up libraries and memory

    deadline = time.perf_counter() + SECONDS_OF_ROUNDS
    for round_number in range(MAX_ROUNDS):
        if round_number >= MIN_ROUNDS and time.perf_counter() > deadline:
            break
        for bf16, windows in variants:
            seconds = timed.run_pass(windows, context, torch.bfloat16 if bf16 else None)
            fastest[bf16, windows] = min(seconds, fastest.get((bf16, windows), seconds))
    return [PassTime(bf16, windows, round(seconds, 6)) for (bf16, windows), seconds in fastest.items()]


def pick_fastest(pass_times: list[PassTime], timed_windows: int, micro_batch: int) -> StepChoice:
    """Pick the precision by the passes of `timed_windows`, and the micro-batch by those of the others in it.

    float32 and `micro_batch` are kept where another gains less than the constants above.
    """
    by_variant = {(pass_time.bf16, pass_time.windows): pass_time for pass_time in pass_times}
    in_float32 = by_variant.get((False, timed_windows))
    in_bf16 = by_variant.get((True, timed_windows))
    bf16 = in_bf16 is not None
    if in_float32 is not None and in_bf16 is not None:
        bf16 = in_float32.seconds >= LEAST_GAIN_OF_BF16 * in_bf16.seconds

    usual = by_variant[bf16, timed_windows]
    in_precision = [pass_time for pass_time in pass_times if pass_time.bf16 == bf16]
    best = min(in_precision, key=lambda pass_time: pass_time.seconds_per_window)
    is_worth_it = usual.seconds_per_window >= LEAST_GAIN_OF_MICRO_BATCH * best.seconds_per_window
    return StepChoice(bf16, best.windows if is_worth_it else micro_batch, tuple(pass_times))


def describe_choice(choice: StepChoice, context: int) -> str:
    """Return a line that says what was measured, what was chosen, and which keys decide otherwise."""
    precisions = {}
    micro_batches = {}
    for pass_time in choice.pass_times:
        milliseconds = 1000 * pass_time.seconds_per_window
        precisions.setdefault(pass_time.precision, f"{milliseconds:.3g} ms in {pass_time.precision}")
        if pass_time.bf16 == choice.bf16:
            micro_batches[pass_time.windows] = f"{milliseconds:.3g} ms in micro-batches of {pass_time.windows}"

    parts = []
    keys = []
    if len(precisions) > 1:
        parts.append(f"{', '.join(precisions.values())}: {'bf16' if choice.bf16 else 'float32'}")
        keys.append("training.bf16")
    if len(micro_batches) > 1:
        parts.append(f"{', '.join(micro_batches.values())}: {choice.micro_batch}")
        keys.append("training.per_device_train_batch_size")
    verb = "decides" if len(keys) == 1 else "decide"
    return (
        f"measured on this machine, forward and backward of {context:,} tokens: {'; '.join(parts)} "
        f"({' and '.join(keys)} {verb} otherwise)"
    )


def digest_shapes(model: PreTrainedModel) -> str:
    """Return a digest of what the time of a pass depends on: the shapes of the weights, and how attention is made."""
    shapes = {name: list(parameter.shape) for name, parameter in model.named_parameters()}
    config = model.config
    attention = {}
    for key in ("num_attention_heads", "num_key_value_heads", "layer_types", "sliding_window", "_attn_implementation"):
        attention[key] = getattr(config, key, None)
    return digest_of([config.model_type, shapes, attention])


# ---- the record in a stage's folder


def write_step_record(folder: Path, choice: StepChoice, shapes: str) -> None:
    """Write `step.json` in a stage's folder: what was chosen, from which figures, and on which machine."""
    entries = {"shapes": shapes, **asdict(choice), "machine": describe_machine()}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / STEP_FILE, entries)


def read_step_record(folder: Path, shapes: str) -> dict[str, Any] | None:
    """Return what was chosen for a model of these shapes in `folder`, or in an earlier stage of its run.

    None where there is no record. Raises UserError for a file that cannot be read.
    """
    earlier = [name for name in STAGES if list(STAGES).index(name) < list(STAGES).index(folder.name)]
    for path in (folder, *(folder.with_name(name) for name in reversed(earlier))):
        record = _read_json(path / STEP_FILE)
        if record is not None and record["shapes"] == shapes:
            return {**record, "folder": str(path), "is_own": path == folder}
    return None


def _read_json(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path}: what was chosen for the steps cannot be read ({error}); delete the file to choose again, and set "
            "training.bf16 as it was if a checkpoint is to be resumed"
        ) from None


def _apply_record(
    record: dict[str, Any],
    folder: Path,
    settings: dict[str, Any],
    by_rule: StepChoice,
    other_micro_batches: Sequence[int],
) -> StepChoice:
    """Return what is recorded, where the recipe does not decide; a micro-batch only that of the stage's own folder."""
    bf16 = choose_precision(settings, record["bf16"])["bf16"]
    micro_batch = by_rule.micro_batch
    if record["is_own"] and record["micro_batch"] in other_micro_batches:
        micro_batch = record["micro_batch"]
    pass_times = tuple(PassTime(**entry) for entry in record["pass_times"])

    text = f"{'bf16' if bf16 else 'float32'}"
    if other_micro_batches:
        text += f", micro-batch {micro_batch}"
    source = f"as chosen in {Path(record['folder']) / STEP_FILE}"
    recorded_machine = record.get("machine", {})
    if recorded_machine.get("processor") != describe_machine()["processor"]:
        source += f", measured on another processor ({recorded_machine.get('processor')})"
    print_main(f"{text}: {source}")
    if is_main_process() and not record["is_own"]:
        kept = {key: value for key, value in record.items() if key not in ("folder", "is_own")}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / STEP_FILE, kept)
    return StepChoice(bf16, micro_batch, pass_times)

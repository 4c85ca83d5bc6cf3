"""Say before a training how long it will take, from a few steps of its model on the shapes of its batches.

Measured on a CPU in one process. On a GPU a step is compiled first, and several processes wait for each other: there
the time left shows in the log once steps have been made.
"""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import IntervalStrategy, PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments

from hf_llm.core.format import format_duration, format_estimate
from hf_llm.hardware.measurement_cache import keep_measurement, read_measurement
from hf_llm.model.summary import flops_per_token
from hf_llm.pipeline.stages import STAGES
from hf_llm.training.fault_tolerance.checkpoints import all_checkpoints, checkpoint_step
from hf_llm.training.step_choice import MAX_WINDOW_FLOPS, can_measure_here, digest_shapes, is_alone
from hf_llm.training.step_timing import TimedModel

MAX_TIMED_PASSES = 3
SECONDS_OF_PASSES = 0.4  # no other pass is begun after so long
MAX_AGE_SECONDS = 300.0  # how long what was timed is taken to hold: other programs come and go
SAMPLED_BATCHES = 4  # micro-batches whose shapes are looked at
FORWARD_SHARE = 1 / 3  # of the arithmetic of a pass
# A step of TRL's trainers by a pass of the model: they also compute losses and metrics of all logits. Measured in SFT
# and DPO of recipes/quickstart.yaml.
TRL_STEP_FACTOR = 1.3

UNKNOWN = "how long it takes shows in the log after the first steps"


@dataclass(frozen=True)
class BatchShape:
    """The tokens of one forward and backward pass, padding included."""

    rows: int
    length: int

    @property
    def tokens(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class StepSeconds:
    """What the parts of a step take on this machine."""

    forward_and_backward: float
    """Of one micro-batch."""
    update: float

    def of_step(self, accumulation: int, reference_passes: float = 0.0) -> float:
        """Return the seconds of a step of `accumulation` micro-batches.

        `reference_passes` forward passes of a reference model are made for each of them.
        """
        repeats = 1 + FORWARD_SHARE * reference_passes
        return accumulation * repeats * self.forward_and_backward + self.update


@dataclass(frozen=True)
class TrainingTime:
    """The estimated time of a training, or of what is left of it."""

    steps: int
    step_seconds: float
    evaluation_seconds: float
    """Of all evaluations together."""

    @property
    def seconds(self) -> float:
        return self.steps * self.step_seconds + self.evaluation_seconds

    def describe(self) -> str:
        """Return the time in words: `about 1 min 29 s on this machine: 600 steps of 146 ms, evaluations 1.2 s`."""
        text = f"about {format_estimate(self.seconds)} on this machine: {self.steps:,} steps of "
        text += f"{1000 * self.step_seconds:.3g} ms" if self.step_seconds < 1 else format_duration(self.step_seconds)
        if self.evaluation_seconds >= 0.1:
            text += f", evaluations {format_duration(self.evaluation_seconds)}"
        return text


def describe_training_time(trainer: Trainer, folder: str) -> str:
    """Return a line on how long the training of `trainer` will take, the stage being that of `folder`."""
    if STAGES[folder].samples_completions:
        return f"{UNKNOWN}: the length of the sampled completions is not known before"
    training_time = estimate_training_time(trainer, folder)
    return UNKNOWN if training_time is None else training_time.describe()


def estimate_training_time(trainer: Trainer, folder: str) -> TrainingTime | None:
    """Time steps of a copy of the trainer's model on random tokens. None where that cannot be done quickly."""
    if not can_time_here():
        return None
    arguments = trainer.args
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    shape = sample_batch_shape(trainer)
    if shape is None or not is_quick(model, shape):
        return None

    batch_rows = arguments.per_device_train_batch_size * arguments.gradient_accumulation_steps
    steps = arguments.max_steps
    if steps <= 0:
        steps = math.ceil(len(trainer.train_dataset) / batch_rows * arguments.num_train_epochs)
    evaluations = count_evaluations(arguments, steps, len(trainer.train_dataset) / batch_rows)
    made = max((checkpoint_step(path) for path in all_checkpoints(Path(arguments.output_dir))), default=0)
    left = max(0, steps - made)

    seconds = time_step(model, arguments, shape, torch.bfloat16 if arguments.bf16 else None)
    row_seconds = FORWARD_SHARE * seconds.forward_and_backward / arguments.per_device_train_batch_size
    evaluation_seconds = evaluations * len(trainer.eval_dataset) * row_seconds * left / steps
    step_seconds = seconds.of_step(arguments.gradient_accumulation_steps, count_reference_passes(trainer, folder))
    if folder != "base":
        step_seconds *= TRL_STEP_FACTOR
    return TrainingTime(left, step_seconds, evaluation_seconds)


def can_time_here() -> bool:
    """Whether this process is alone, and has the whole model on a CPU."""
    return is_alone() and can_measure_here({})


def is_quick(model: PreTrainedModel | PreTrainedConfig, shape: BatchShape) -> bool:
    """Whether a pass of `shape` takes less than about a second, for a model or a config without weights."""
    return shape.tokens * flops_per_token(model, shape.length) <= MAX_WINDOW_FLOPS


def time_step(
    model: PreTrainedModel, arguments: TrainingArguments, shape: BatchShape, autocast: torch.dtype | None
) -> StepSeconds:
    """Time passes and updates of a copy of `model`, which stays as it is, as does torch's random state.

    What was timed on this machine a moment ago is taken instead, as a run does before its first stage.
    """
    question = {
        "what": "step, 1",
        "shapes": digest_shapes(model),
        "trained": sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        "batch": [shape.rows, shape.length],
        "autocast": str(autocast),
        "optim": str(arguments.optim),
        "checkpointing": arguments.activation_checkpointing,
    }
    recent = read_measurement(question, MAX_AGE_SECONDS)
    if recent is not None:
        return StepSeconds(*recent)
    with torch.random.fork_rng(devices=[]):
        timed = TimedModel(copy.deepcopy(model), arguments)
        timed.run_pass(shape.rows, shape.length, autocast)  # the first ones set up libraries, memory and states
        timed.run_update()
        passes: list[float] = []
        updates: list[float] = []
        while not passes or (len(passes) < MAX_TIMED_PASSES and sum(passes) < SECONDS_OF_PASSES):
            passes.append(timed.run_pass(shape.rows, shape.length, autocast))
            updates.append(timed.run_update())
    seconds = StepSeconds(min(passes), min(updates))
    keep_measurement(question, [seconds.forward_and_backward, seconds.update])
    return seconds


def sample_batch_shape(trainer: Trainer) -> BatchShape | None:
    """Return the mean shape of some micro-batches as the trainer's collator makes them; None where it makes none.

    Rows are taken at equal distances, which leaves the random state and the order of the data alone.
    """
    rows = trainer.train_dataset
    size = trainer.args.per_device_train_batch_size
    if len(rows) == 0:
        return None
    shapes = []
    for batch in range(SAMPLED_BATCHES):
        first = batch * max(1, len(rows) - size) // SAMPLED_BATCHES
        chosen = [rows[(first + number) % len(rows)] for number in range(size)]
        try:
            shapes.append(trainer.data_collator(chosen)["input_ids"].shape)
        except (KeyError, TypeError, ValueError):
            return None  # some trainers add columns later, or name the tokens otherwise
    return average_shape(shapes)


def average_shape(shapes: Sequence[tuple[int, ...]]) -> BatchShape:
    """Return the shape of the mean number of rows and of tokens."""
    rows = max(1, round(sum(shape[0] for shape in shapes) / len(shapes)))
    tokens = sum(shape[0] * shape[1] for shape in shapes) / len(shapes)
    return BatchShape(rows, max(1, round(tokens / rows)))


def count_evaluations(arguments: TrainingArguments, steps: int, steps_of_epoch: float) -> int:
    """Count the evaluations of a training of `steps`, with the one at its end."""
    if arguments.eval_strategy == IntervalStrategy.EPOCH:
        return max(1, math.ceil(steps / max(1.0, steps_of_epoch)))
    if arguments.eval_strategy != IntervalStrategy.STEPS:
        return 1
    interval = arguments.eval_steps or arguments.logging_steps
    if interval < 1:  # a share of all steps
        interval = math.ceil(steps * interval)
    return max(1, math.ceil(steps / interval))


def count_reference_passes(trainer: Trainer, folder: str) -> float:
    """Return how many forward passes of a reference model a micro-batch takes, beside its own pass."""
    if not STAGES[folder].scores_reference or getattr(trainer.args, "precompute_ref_log_probs", False):
        return 0.0
    return 1.0

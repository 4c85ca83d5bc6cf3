"""Estimate what a recipe takes before it runs: parameters, memory, hours, disk, energy, cost.

    python -m hf_llm.plan recipes/gpt125m.yaml                    # on this host, whose speed is measured
    python -m hf_llm.plan recipes/gpt125m.yaml --gpus 4xrtx4090 --price 0.4/gpu-hour --electricity 0.3
    python -m hf_llm.plan recipes/quickstart.yaml --score         # after the run: compare predicted with actual

Needs no corpus, no tokenizer and no weights. A plan for this host, made before the pretraining, is saved in
runs/<name>/plan.json, and the report compares it with what the run took.
"""

import argparse
import importlib
import math
import re
import shlex
import sys
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_llm.core.command_line import CommandParser
from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError, command
from hf_llm.core.format import format_gib, format_number
from hf_llm.hardware.devices import Device, detect_hardware, list_devices_called, parse_hardware, training_dtype
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.sizing import TOKENS_PER_PARAMETER
from hf_llm.pipeline.stages import STAGES
from hf_llm.planning.cost import parse_price
from hf_llm.preflight.before_work import ChildCheck, print_notes
from hf_llm.preflight.findings import Findings
from hf_llm.reporting.plan_accuracy import PLAN_FILE, compare_with_plan, save_prediction

if TYPE_CHECKING:
    from hf_llm.planning.memory_estimate import EngineEstimate, TrainingJob
    from hf_llm.planning.speed import Speed
    from hf_llm.planning.stage_plans import StagePlan


@dataclass
class TargetHardware:
    """The hardware that the plan is for."""

    devices: int
    """The number of devices."""
    device: Device
    is_this_host: bool
    """Whether it is the hardware of this host, whose speed can be measured."""
    measured_bf16: bool | None = None
    """What a measurement has chosen on this host (`measure_precision`); None where nothing was measured."""

    @property
    def device_type(self) -> str:
        """`cuda`, `mps` or `cpu`; any hardware but this host's is planned for as CUDA devices."""
        from hf_llm.hardware.runtime import device_type

        return device_type() if self.is_this_host else "cuda"

    @property
    def bf16(self) -> bool:
        """Whether training takes bf16 where the recipe does not say."""
        from hf_llm.hardware.runtime import device_type, has_bf16

        if self.measured_bf16 is not None:
            return self.measured_bf16
        if self.is_this_host:
            return has_bf16(device_type())
        return training_dtype(self.device) == "bfloat16"


@command
def main(argv: list[str] | None = None) -> None:
    options, recipe_arguments = parse_options(list(sys.argv[1:] if argv is None else argv))
    run = Run(recipe_arguments)
    if options.score:
        return print_score(run)

    recipe = run.read(importlib.import_module(STAGES["base"].module).Recipe)

    # Before the process of the check is forked, so that it has these imports too.
    import hf_llm.training.train_and_save  # noqa: F401
    from hf_llm.planning.memory import OPTIMIZER, UPDATE
    from hf_llm.planning.stage_plans import HardwarePlan, plan_pretraining, plan_tuning
    from hf_llm.planning.tables import format_memory_table, format_stage_table

    # The model, the hardware and the memory, while the recipe is checked in another process. The memory of the other
    # stages comes now, too: timing leaves holes in this process's heap.
    hardware = choose_hardware(options.gpus)
    if hardware.is_this_host:
        measure_precision(run, recipe, hardware)
    check = ChildCheck(run, on_this_host=options.gpus is None)
    try:
        job = build_pretraining_job(run, recipe, hardware)
        estimates = estimate_memory(job, hardware)
        fitting = find_first_fitting(estimates, job, hardware)
        tuning_peaks = {}
        if fitting is not None or not hardware.is_this_host:
            tuning_peaks = estimate_tuning_peaks(run, job, hardware)
    finally:
        print_findings(check.wait())

    memory = format_gib(hardware.device.memory)
    if options.gpus:
        print_other_devices(options.gpus, hardware.device)
    print_main(f"{run.name} on {hardware.devices} x {hardware.device.name} with {memory} GiB\n")
    print_model(job, recipe.pretrain)

    # Memory, and what fits
    micro_batch = job.choose_micro_batch(hardware.devices, hardware.device_type)
    if hardware.device_type != "cpu":
        print_main(
            f"Memory of one device in a step of {micro_batch} x {job.context:,} tokens, and the largest micro-batch "
            "that fits:"
        )
    print_main(format_memory_table(estimates))
    print_main(advise(estimates, fitting, hardware, micro_batch))
    if fitting is None and hardware.is_this_host:
        return

    # Speed
    estimate = fitting or estimates[0]
    speed = find_speed(job, hardware, estimate)
    print_main(f"\n{format_number(speed.tokens_per_second)} tokens per second: {speed.source}\n")

    # The stages
    hardware_plan = HardwarePlan(
        config=job.config,
        engine=estimate.engine,
        tokens_per_second=speed.tokens_per_second,
        devices=hardware.devices,
        device=hardware.device,
        bf16=job.bf16,
        price=options.price.per_device(hardware.devices) if options.price else None,
        electricity=options.electricity,
    )
    optimizer_bytes = estimates[0].footprint.phases[UPDATE].get(OPTIMIZER, 0)
    stages = [plan_pretraining(recipe.pretrain, estimate.footprint.peak, optimizer_bytes, hardware_plan)]
    for folder, peak in tuning_peaks.items():
        stages.append(plan_tuning(folder, run.tree[folder], peak, hardware_plan))
    currency = ""
    if options.price:
        print_main(options.price.describe())
        currency = options.price.currency
    print_main(format_stage_table(stages, options.price is not None, options.electricity is not None, currency))

    if hardware.is_this_host and not run.folder("base").exists():
        keep_plan(run, estimate, speed, stages[0])


def parse_options(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return this command's own options, and the other arguments: the recipe and its overrides."""
    parser = CommandParser(
        "python -m hf_llm.plan",
        description=__doc__,
        allow_abbrev=False,
    )
    parser.add_argument("--gpus", help="hardware other than this host's, as 4xrtx4090")
    parser.add_argument("--price", help="of an hour of one GPU, as 0.4/gpu-hour, or of all, as $3.2/machine-hour")
    parser.add_argument("--electricity", type=float, help="price of a kWh")
    parser.add_argument("--score", action="store_true", help="compare predicted with actual values of a finished run")
    options, recipe_arguments = parser.parse_known_args(argv)
    if not recipe_arguments:
        parser.error("name a recipe first, as recipes/gpt125m.yaml")
    if options.price is not None:
        options.price = parse_price(options.price)
    return options, recipe_arguments


def print_score(run: Run) -> None:
    """Print predicted and actual values of a run. Raises UserError where either is missing."""
    from hf_llm.planning.tables import format_score_table

    scores = compare_with_plan(run.root, run.tree)
    if not scores:
        raise UserError(
            f"{run.root}: nothing to compare; it takes a finished pretraining, and {PLAN_FILE} of the same recipe, "
            f"which `python -m hf_llm.plan {shlex.quote(run.argv[0])}` writes before it"
        )
    print_main(format_score_table(scores))


def print_findings(findings: Findings) -> None:
    """Print what has to be corrected before the recipe runs.

    The plan goes on: the data of a run that is planned for another machine need not be here.
    """
    print_notes(findings)
    if findings.problems:
        print_main("To correct before this recipe runs here (python -m hf_llm.check):")
        for problem in findings.problems:
            print_main(f"  {problem}")
        print_main("")


def print_other_devices(gpus: str, chosen: Device) -> None:
    """Say which device is taken for a name that several have."""
    *_, name = re.split(r"^\s*\d+\s*[x×*]\s*", gpus)
    others = [device.key for device in list_devices_called(name) if device != chosen]
    if others:
        print_main(f"--gpus {gpus}: taken as {chosen.key}; the others of that name are {', '.join(others)}")


def choose_hardware(gpus: str | None) -> TargetHardware:
    """Return the hardware that `--gpus` names, else this host's."""
    if gpus:
        devices, device = parse_hardware(gpus)
        return TargetHardware(devices, device, is_this_host=False)
    devices, device = detect_hardware()
    return TargetHardware(devices, device, is_this_host=True)


def build_pretraining_job(run: Run, recipe: Any, hardware: TargetHardware) -> "TrainingJob":
    """Collect the settings of the recipe that determine the memory of a pretraining step.

    Raises UserError for a step that is not a whole number of windows on each device.
    """
    from hf_llm.model.load import resolve_context
    from hf_llm.planning.memory_estimate import TrainingJob, build_pretraining_config

    section = recipe.pretrain
    config = build_pretraining_config(recipe.model, section, run.tree, run.folder("tokenizer"))
    context = resolve_context(config, section.context)

    micro_batch = section.training.get("per_device_train_batch_size", 1)
    smallest_step = context * hardware.devices * micro_batch
    tokens_per_step = section.tokens_per_step
    if tokens_per_step % smallest_step:
        next_multiple = math.ceil(tokens_per_step / smallest_step) * smallest_step
        raise UserError(
            f"pretrain.tokens_per_step: {tokens_per_step} is not a multiple of {smallest_step}, {context} "
            f"tokens of context on each of {hardware.devices} devices; try {next_multiple}"
        )
    windows = tokens_per_step // context
    return TrainingJob(config, context, windows, section.training, hardware.bf16)


def measure_precision(run: Run, recipe: Any, hardware: TargetHardware) -> None:
    """Let `hardware` know which precision training would choose on this host's CPU.

    Before anything else computes here: it is timed in a fork, so that this process's heap stays as it is.
    """
    from hf_llm.planning.memory import can_measure_fork, run_in_fork
    from hf_llm.planning.speed import choose_planned_bf16

    if hardware.device_type != "cpu" or not can_measure_fork():
        return
    try:
        job = build_pretraining_job(run, recipe, hardware)
    except UserError:
        return  # it is reported after the check of the recipe
    hardware.measured_bf16 = run_in_fork(partial(choose_planned_bf16, job), threads=None)


def print_model(job: "TrainingJob", section: Any) -> None:
    """Print the parameters by part, and the tokens against the compute-optimal number."""
    import torch

    from hf_llm.model.summary import flops_per_token, summarize_model
    from hf_llm.planning.memory_estimate import build_planned_model

    with torch.device("meta"):
        model = build_planned_model(job.config)
    print_main(summarize_model(model))

    parameters = model.num_parameters()
    steps = section.training.get("max_steps")
    if steps and steps > 0:
        tokens = steps * section.tokens_per_step
        flops = tokens * flops_per_token(model, job.context)
        print_main(
            f"  {format_number(tokens)} tokens, {tokens / parameters:,.3g} for each parameter; {TOKENS_PER_PARAMETER} "
            f"({format_number(TOKENS_PER_PARAMETER * parameters)}) are compute-optimal (Chinchilla, "
            f"https://arxiv.org/abs/2203.15556)\n  {flops:.3g} FLOPs in all"
        )
    print_main("")


def estimate_memory(job: "TrainingJob", hardware: TargetHardware) -> "list[EngineEstimate]":
    """Estimate the memory under each engine, also with activation checkpointing if the recipe does not set it."""
    import torch

    from hf_llm.hardware.runtime import use_all_cores
    from hf_llm.planning.memory_estimate import build_planned_model, estimate_cpu_training, estimate_gpu_engines
    from hf_llm.training.pretraining_trainer import check_activation_checkpointing

    micro_batch = job.choose_micro_batch(hardware.devices, hardware.device_type)
    if hardware.device_type == "cpu":
        use_all_cores()
        return [estimate_cpu_training(job, micro_batch)]

    is_requested = job.build_arguments().activation_checkpointing
    with torch.device("meta"):
        model = build_planned_model(job.config)
    if is_requested:
        check_activation_checkpointing(model)
        checkpointing_choices = [True]
    elif model.supports_gradient_checkpointing:
        checkpointing_choices = [False, True]
    else:
        checkpointing_choices = [False]

    estimates = []
    for checkpointing in checkpointing_choices:
        estimates += estimate_gpu_engines(job, hardware.devices, hardware.device, micro_batch, checkpointing)
    return estimates


def find_first_fitting(
    estimates: "list[EngineEstimate]", job: "TrainingJob", hardware: TargetHardware
) -> "EngineEstimate | None":
    """Find the first estimate, in order of cost in speed, with room for the planned micro-batch, or else for any."""
    if hardware.device_type == "cpu":
        fits = estimates[0].footprint.peak <= hardware.device.memory
        return estimates[0] if fits else None

    micro_batch = job.choose_micro_batch(hardware.devices, hardware.device_type)
    for least_windows in (micro_batch, 1):
        for estimate in estimates:
            if estimate.max_micro_batch >= least_windows:
                return estimate
    return None


def advise(
    estimates: "list[EngineEstimate]", chosen: "EngineEstimate | None", hardware: TargetHardware, micro_batch: int
) -> str:
    """Advise what to change if a micro-batch of `micro_batch` windows does not fit in memory, the cheapest change
    first. Every change that is named fits by the table of `estimates`."""
    if chosen is None:
        return (
            f"Nothing here fits in {format_gib(hardware.device.memory)} GiB: take more or larger devices, a shorter "
            "context (--pretrain.context), or a smaller model."
        )
    planned = estimates[0]
    if chosen is planned:
        return "It fits as it is."

    remedies = []
    if planned.max_micro_batch:
        remedies.append(f"{_batch_option(planned)} (costs almost nothing)")
    fitting = [estimate for estimate in estimates[1:] if estimate.max_micro_batch]
    same_engine = [estimate for estimate in fitting if estimate.engine == planned.engine]
    if same_engine:
        remedies.append(_describe_change(planned, same_engine[0], micro_batch))
    # The engines without activation checkpointing stand before those with it.
    other_engines = [estimate for estimate in fitting if estimate.engine != planned.engine]
    if other_engines:
        remedies.append(_describe_change(planned, other_engines[0], micro_batch))
    return f"{planned.engine} has no room for that. In order of cost: " + "; ".join(remedies) + "."


def _describe_change(planned: "EngineEstimate", other: "EngineEstimate", micro_batch: int) -> str:
    """Describe what to change in a plan to get another estimate of its table."""
    changes = []
    if other.engine != planned.engine:
        changes.append(f"{other.engine} (docs/launching.md; more traffic between the devices)")
    if other.checkpointing and not planned.checkpointing:
        changes.append("--pretrain.training.activation_checkpointing=true (a third more arithmetic)")
    if other.max_micro_batch < micro_batch:
        changes.append(_batch_option(other))
    return " with ".join(changes)


def _batch_option(estimate: "EngineEstimate") -> str:
    return f"--pretrain.training.per_device_train_batch_size={estimate.max_micro_batch}"


def estimate_tuning_peaks(run: Run, job: "TrainingJob", hardware: TargetHardware) -> dict[str, int]:
    """Estimate the bytes of one device in each training stage after pretraining that can be planned."""
    from hf_llm.planning.stage_plans import PLANNED_FROM_ROWS, estimate_tuning_memory

    peaks = {}
    for folder in PLANNED_FROM_ROWS:
        section = run.tree.get(folder)
        if section:
            peaks[folder] = estimate_tuning_memory(folder, section, job.config, hardware.device, job.bf16)
    return peaks


def find_speed(job: "TrainingJob", hardware: TargetHardware, estimate: "EngineEstimate") -> "Speed":
    """Measure the speed on this host, or estimate it from the data sheet.

    The data sheet is also used where the measurement runs out of memory.
    """
    import torch

    from hf_llm.planning.speed import estimate_speed, measure_job_speed

    if hardware.is_this_host:
        try:
            return measure_job_speed(job, hardware.devices, estimate.checkpointing)
        except torch.OutOfMemoryError:
            pass
    return estimate_speed(
        job.config,
        hardware.device,
        job.context,
        hardware.devices,
        estimate.checkpointing,
        dtype=str(job.autocast or torch.float32).removeprefix("torch."),
        micro_batch=estimate.max_micro_batch or None,
    )


def keep_plan(run: Run, estimate: "EngineEstimate", speed: "Speed", stage: "StagePlan") -> None:
    """Save the prediction for the pretraining; the report compares it with what the run took."""
    from hf_llm.planning.memory_estimate import tensor_bytes

    predicted = {
        "memory, GiB": tensor_bytes(estimate.footprint) / 2**30,
        "tokens per second": speed.tokens_per_second,
        "hours": stage.hours,
    }
    save_prediction(run.root, run.tree, predicted)
    print_main(f"\n{run.root / PLAN_FILE} is kept for the report")


if __name__ == "__main__":
    main()

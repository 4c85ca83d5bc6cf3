"""Say what a recipe will take before anything is made: parameters, memory, hours, disk, energy, money.

    python -m hf_llm.plan recipes/gpt125m.yaml                    # on this machine, whose speed is measured
    python -m hf_llm.plan recipes/gpt125m.yaml --gpus 4xrtx4090 --price 0.4/gpu-hour --electricity 0.3
    python -m hf_llm.plan recipes/quickstart.yaml --score         # once it has run: predicted beside actual

Needs no corpus, no tokenizer and no weights. What is planned for this machine before the pretraining is kept in
runs/<name>/plan.json, and the report shows it beside what the run took.
"""

import argparse
import importlib
import sys
from dataclasses import dataclass
from typing import Any

import torch

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError, command
from hf_llm.hardware.devices import Device, parse_machine, this_machine, training_dtype
from hf_llm.hardware.runtime import device_type, has_bf16, use_all_cores
from hf_llm.model.load import context_of
from hf_llm.model.summary import describe, flops_per_token
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.sizing import TOKENS_PER_PARAMETER
from hf_llm.pipeline.stages import STAGES
from hf_llm.planning.cost import parse_price
from hf_llm.planning.memory import OPTIMIZER, UPDATE
from hf_llm.planning.memory_estimate import Job, Row, cpu_row, gpu_rows, model_of, pretraining_config, tensors
from hf_llm.planning.speed import Speed, measured_here, tokens_per_second
from hf_llm.planning.stage_plans import PLANNED_FROM_ROWS, Place, Prospect, pretraining, tuning, tuning_memory
from hf_llm.planning.tables import gib, memory_table, number, score_table, stage_table
from hf_llm.reporting.plan_accuracy import PLAN, keep, score
from hf_llm.training.pretraining_trainer import check_checkpointing


@dataclass
class Machine:
    """What the plan is for. `here` is this machine, whose speed can be measured."""

    devices: int
    device: Device
    here: bool

    @property
    def kind(self) -> str:
        """`cuda`, `mps` or `cpu`; every machine that is not here is planned for as one with CUDA."""
        return device_type() if self.here else "cuda"

    @property
    def bf16(self) -> bool:
        """Whether its devices have units for it."""
        return has_bf16(device_type()) if self.here else training_dtype(self.device) == "bfloat16"


@command
def main(argv: list[str] | None = None) -> None:
    options, rest = parse(list(sys.argv[1:] if argv is None else argv))
    run = Run(rest)
    if options.score:
        return say_score(run)
    recipe = run.read(importlib.import_module(STAGES["base"].module).Recipe)
    machine = Machine(*parse_machine(options.gpus), False) if options.gpus else Machine(*this_machine(), True)
    job = pretraining_job(run, recipe, machine)
    print_main(f"{run.name} on {machine.devices} x {machine.device.name} with {gib(machine.device.memory)} GiB\n")
    say_model(job, recipe.pretrain)

    rows = memory(job, machine)
    print_main(memory_table(rows))
    fitting = first_that_fits(rows, job, machine)
    print_main(advice(rows, fitting, machine))
    if fitting is None and machine.here:
        return

    row = fitting or rows[0]
    peaks = tuning_peaks(run, job, machine)
    speed = speed_of(job, machine, row)
    rate, prices = speed.tokens_per_second, {"price": options.price, "electricity": options.electricity}
    print_main(f"\n{number(rate)} tokens per second: {speed.source}\n")
    place = Place(job.config, row.engine, rate, machine.devices, machine.device, machine.bf16, prices)
    states = rows[0].footprint.phases[UPDATE].get(OPTIMIZER, 0)
    stages = [pretraining(recipe.pretrain, row.footprint.peak, states, place)]
    stages += [tuning(folder, run.tree[folder], peak, place) for folder, peak in peaks.items()]
    print_main(stage_table(stages, options.price is not None, options.electricity is not None))
    if machine.here and not run.folder("base").exists():
        keep_plan(run, row, speed, stages[0])


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """This command's own options, and the rest: the recipe and its overrides."""
    parser = argparse.ArgumentParser(
        "python -m hf_llm.plan",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--gpus", help="another machine than this one, as 4xrtx4090")
    parser.add_argument("--price", help="of an hour of one GPU, as 0.4/gpu-hour")
    parser.add_argument("--electricity", type=float, help="price of a kWh")
    parser.add_argument("--score", action="store_true", help="predicted beside actual, of a run that is over")
    options, rest = parser.parse_known_args(argv)
    if not rest:
        parser.error("name a recipe first, as recipes/gpt125m.yaml")
    options.price = parse_price(options.price) if options.price is not None else None
    return options, rest


def say_score(run: Run) -> None:
    """Print predicted beside actual. Raises UserError where one of the two is missing."""
    found = score(run.root, run.tree)
    if not found:
        raise UserError(
            f"{run.root}: nothing to compare; it takes a finished pretraining, and {PLAN} of the same recipe, which "
            f"`python -m hf_llm.plan {run.argv[0]}` writes before it"
        )
    print_main(score_table(found))


def pretraining_job(run: Run, recipe: Any, machine: Machine) -> Job:
    """What of the recipe decides the memory of a pretraining step. Raises UserError for a step of broken windows."""
    section = recipe.pretrain
    config = pretraining_config(recipe.model, section, run.tree, run.folder("tokenizer"))
    context = context_of(config, section.context)
    unit = context * machine.devices * section.training.get("per_device_train_batch_size", 1)
    if section.tokens_per_step % unit:
        near = -(-section.tokens_per_step // unit) * unit
        raise UserError(
            f"pretrain.tokens_per_step: {section.tokens_per_step} is no multiple of {unit}, {context} tokens of "
            f"context on each of {machine.devices} devices; try {near}"
        )
    return Job(config, context, section.tokens_per_step // context, section.training, machine.bf16)


def say_model(job: Job, section: Any) -> None:
    """Print the parameters by part, and the tokens against the compute-optimal number."""
    with torch.device("meta"):
        model = model_of(job.config)
    print_main(describe(model))
    parameters, flops = model.num_parameters(), flops_per_token(model, job.context)
    steps = section.training.get("max_steps")
    if steps and steps > 0:
        tokens = steps * section.tokens_per_step
        print_main(
            f"  {number(tokens)} tokens, {tokens / parameters:,.3g} for each parameter; {TOKENS_PER_PARAMETER} "
            f"({number(TOKENS_PER_PARAMETER * parameters)}) are compute-optimal (Chinchilla, "
            f"https://arxiv.org/abs/2203.15556)\n  {tokens * flops:.3g} FLOPs in all"
        )
    print_main("")


def memory(job: Job, machine: Machine) -> list[Row]:
    """The ways to train, side by side: as the recipe says, and with activation checkpointing where it has it not."""
    micro = job.micro_batch(machine.devices, machine.kind)
    if machine.kind == "cpu":
        use_all_cores()
        return [cpu_row(job, micro)]
    asked = bool(job.arguments().activation_checkpointing)
    with torch.device("meta"):
        model = model_of(job.config)
    if asked:
        check_checkpointing(model)
    ways = [False, True] if model.supports_gradient_checkpointing and not asked else [asked]
    rows = [row for way in ways for row in gpu_rows(job, machine.devices, machine.device, micro, way)]
    print_main(f"One device in a step of {micro} x {job.context:,} tokens, and the largest micro-batch that fits:")
    return rows


def first_that_fits(rows: list[Row], job: Job, machine: Machine) -> Row | None:
    """The first row, in order of what it costs in speed, that leaves room for the micro-batch planned; else for any."""
    micro = job.micro_batch(machine.devices, machine.kind)
    if machine.kind == "cpu":
        return rows[0] if rows[0].footprint.peak <= machine.device.memory else None
    return next((row for row in rows if row.largest >= micro), None) or next((row for row in rows if row.largest), None)


def advice(rows: list[Row], chosen: Row | None, machine: Machine) -> str:
    """What to change where something does not fit, the cheapest first."""
    if chosen is None:
        return (
            f"Nothing here fits into {gib(machine.device.memory)} GiB: take more or larger devices, a shorter context "
            "(--pretrain.context), or a smaller model."
        )
    if chosen is rows[0]:
        return "It fits as it is."
    remedies = []
    if rows[0].largest:
        remedies.append(f"--pretrain.training.per_device_train_batch_size={rows[0].largest} (costs nothing much)")
    if any(row.checkpointing and row.largest for row in rows) and not rows[0].checkpointing:
        remedies.append("--pretrain.training.activation_checkpointing=true (a third more arithmetic)")
    sharded = next((row for row in rows if row.largest and row.engine != rows[0].engine), None)
    if sharded is not None:
        remedies.append(f"{sharded.engine} (docs/launching.md; more traffic between the devices)")
    return f"{rows[0].engine} has no room for that. In order of what it costs: " + "; ".join(remedies) + "."


def tuning_peaks(run: Run, job: Job, machine: Machine) -> dict[str, int]:
    """Bytes of one device in each training stage after pretraining that can be planned."""
    sections = {folder: run.tree[folder] for folder in PLANNED_FROM_ROWS if run.tree.get(folder)}
    where = (job.config, machine.device, machine.bf16)
    return {folder: tuning_memory(folder, section, *where) for folder, section in sections.items()}


def speed_of(job: Job, machine: Machine, row: Row) -> Speed:
    """Tokens per second: measured here, or from the data sheet, also where one device has no room to try it out."""
    if machine.here:
        try:
            return measured_here(job, machine.devices, row.checkpointing)
        except torch.OutOfMemoryError:
            pass
    dtype = str(job.autocast or torch.float32).removeprefix("torch.")
    return tokens_per_second(job.config, machine.device, job.context, machine.devices, row.checkpointing, dtype)


def keep_plan(run: Run, row: Row, speed: Speed, stage: Prospect) -> None:
    """Leave what is predicted of the pretraining for the report, which shows it beside what the run took."""
    predicted = {
        "memory, GiB": tensors(row.footprint) / 2**30,
        "tokens per second": speed.tokens_per_second,
        "hours": stage.hours,
    }
    keep(run.root, run.tree, predicted)
    print_main(f"\n{run.root / PLAN} is kept for the report")


if __name__ == "__main__":
    main()

"""Say what this machine has, how fast it is and what would stop a training; write a launch config and a recipe for it.

    python -m hf_llm.doctor
    python -m hf_llm.doctor --quick                                    # without timing anything
    python -m hf_llm.doctor --accelerate-config accelerate_configs/this_machine.yaml
    python -m hf_llm.doctor --params 125M --use chat --hours 24 --machine 4xrtx4090 --recipe my.yaml

Exit code 1 where something is found that stops training. A file that is there already is never overwritten.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from hf_llm.core.errors import UserError, command
from hf_llm.hardware.devices import Device, this_machine, training_dtype
from hf_llm.hardware.environment_checks import Finding, findings
from hf_llm.hardware.microbenchmarks import (
    Rate,
    all_reduce_rate,
    bandwidth_bound,
    copy_rate,
    judged,
    matmul_bounds,
    matmul_rates,
)
from hf_llm.hardware.runtime import device_type
from hf_llm.pipeline.sizing import SIZING_KEYS
from hf_llm.planning.recipe_generator import goal_of, write_recipe
from hf_llm.planning.speed import training_rate


@command
def main(argv: list[str] | None = None) -> None:
    options = parser().parse_args(argv)
    count, device = this_machine()
    found, rates = findings(), []
    if not options.quick:
        rates, problems = measure(count, device)
        found += problems
    machine = machine_line(count, device, rates)
    if options.json:
        report = {"findings": [asdict(finding) for finding in found], "rates": [asdict(rate) for rate in rates]}
        print(json.dumps({**report, "machine": machine}, indent=2))
    else:
        print("\n".join([*finding_lines(found), *rate_lines(rates), *closing_lines(machine)]))
    if options.accelerate_config:
        write_launch_config(options.accelerate_config, count, device)
    if options.recipe or any(getattr(options, dial) for dial in SIZING_KEYS):
        write_goal(options, machine)
    if any(finding.level == "problem" for finding in found):
        sys.exit(1)


def parser() -> argparse.ArgumentParser:
    text = argparse.RawDescriptionHelpFormatter
    found = argparse.ArgumentParser("python -m hf_llm.doctor", description=__doc__, formatter_class=text)
    found.add_argument("--quick", action="store_true", help="measure nothing")
    found.add_argument("--json", action="store_true", help="print it as JSON")
    found.add_argument("--accelerate-config", type=Path, metavar="FILE", help="write a config for `accelerate launch`")
    goal = found.add_argument_group("a recipe for a goal")
    goal.add_argument("--recipe", type=Path, metavar="FILE", help="where to write it")
    goal.add_argument("--params", help="parameters, as in 125M")
    goal.add_argument("--depth", help="layers, as in 12")
    goal.add_argument("--flops", help="arithmetic to spend, as in 1e18")
    goal.add_argument("--hours", help="of pretraining on the machine; alone, or with --params or --depth")
    goal.add_argument("--use", choices=("base", "chat"), default="chat", help="what the model is for (chat)")
    goal.add_argument("--machine", help="as in 4xrtx4090; this one if left out")
    goal.add_argument("--corpus", type=Path, metavar="PATH", help="a file or folder of texts to learn from")
    return found


def measure(count: int, device: Device) -> tuple[list[Rate], list[Finding]]:
    """Matrix products, memory, between this machine's processes all-reduce and, where no data sheet tells how fast it
    trains, a training; and what is wrong with the figures."""
    place, bounds = torch.device(device_type()), matmul_bounds(device)
    rates = [*matmul_rates(place, bounds), copy_rate(place, bandwidth_bound(device))]
    problems = []
    if place.type != "mps" and (place.type == "cpu" or count > 1):
        try:
            rates.append(all_reduce_rate(max(count, 2), place.type))
        except (RuntimeError, TimeoutError) as error:
            remedy = "several processes cannot train together here; NCCL_DEBUG=INFO says more, one GPU still works"
            problems.append(Finding("all-reduce", str(error), "problem" if count > 1 else "note", remedy))
    if not training_dtype(device):
        trained = training_rate()
        rates.append(judged(trained, bounds.get(trained.dtype)))
    for rate in rates:
        if rate.refused:
            what = " ".join(str(part) for part in (rate.what, rate.dtype, rate.side) if part)
            problems.append(Finding(what, rate.refused, "note", "this figure is not used; run it again"))
    return rates, problems


def machine_line(count: int, device: Device, rates: list[Rate]) -> str | float | None:
    """What a recipe says under `machine` to mean this one: by name where its data sheet is known, else the FLOP/s at
    which it trains; None where that was not measured."""
    if training_dtype(device):
        return f"{count}x{device.key}"
    trained = [rate.value for rate in rates if rate.what == "training" and not rate.refused]
    return float(f"{count * trained[0]:.3g}") if trained else None


def finding_lines(found: list[Finding]) -> list[str]:
    """A line for each finding and, below what is not right, the remedy."""
    width = max(len(finding.what) for finding in found)
    lines = []
    for finding in found:
        lines.append(f"{finding.level:<8} {finding.what:<{width}}  {finding.value}")
        if finding.remedy:
            lines.append(f"{'':<8} {'':<{width}}  -> {finding.remedy}")
    return lines


def rate_lines(rates: list[Rate]) -> list[str]:
    """A table of the products by type and size, then memory and all-reduce. Refused figures are not shown."""
    lines = []
    products = [rate for rate in rates if rate.what == "matmul"]
    if products:
        sides = sorted({rate.side for rate in products})
        lines += ["", f"{'matrix products, GFLOP/s':<26}" + "".join(f"{side:>10,}" for side in sides)]
        for dtype in dict.fromkeys(rate.dtype for rate in products):
            there = {rate.side: rate for rate in products if rate.dtype == dtype}
            lines.append(f"  {dtype:<24}" + "".join(f"{_figure(there.get(side)):>10}" for side in sides))
    for rate in rates:
        if rate.what == "copy":
            lines.append(f"{'memory, copying, GB/s':<26}{_figure(rate):>10}")
        if rate.what == "all-reduce":
            lines.append(f"{f'all-reduce ({rate.dtype}), GB/s':<26}{_figure(rate):>10}")
        if rate.what == "training":
            lines.append(f"{f'training in {rate.dtype}, GFLOP/s':<26}{_figure(rate):>10}")
    return lines


def _figure(rate: Rate | None) -> str:
    if rate is None:
        return ""
    if rate.refused:
        return "refused"
    return f"{rate.value / 1e9:,.3g}" if rate.value < 1e12 else f"{rate.value / 1e9:,.0f}"


def closing_lines(machine: str | float | None) -> list[str]:
    """What a recipe with `hours:` needs."""
    if machine is None:
        return []
    line = f"machine: {machine:g}" if isinstance(machine, float) else f"machine: {machine}"
    return ["", f"In a recipe with `hours:`, this machine is `{line}`."]


def write_launch_config(path: Path, count: int, device: Device) -> None:
    """A config for `accelerate launch`: as many processes as there are devices. Raises UserError for a file that is
    there already."""
    lines = [
        f"# accelerate launch --config_file {path} -m hf_llm.pretrain recipes/quickstart.yaml",
        f"# {count} x {device.name}, as hf_llm.doctor found it.",
        "compute_environment: LOCAL_MACHINE",
        "distributed_type: MULTI_GPU" if count > 1 else 'distributed_type: "NO"',
        "num_machines: 1",
        f"num_processes: {count}",
        *(["use_cpu: true"] if device.key == "cpu" else []),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    except FileExistsError:
        raise UserError(f"{path} is there already and is never overwritten; give another name") from None
    print(f"\n{path} is written: {lines[0].removeprefix('# ')}", file=sys.stderr)


def write_goal(options: argparse.Namespace, machine: str | float | None) -> None:
    """The recipe for the goal on the command line."""
    if not options.recipe:
        raise UserError("a goal needs --recipe FILE, where the recipe goes")
    dials = {dial: getattr(options, dial) for dial in SIZING_KEYS}
    place = options.machine or machine
    if options.hours and place is None:
        raise UserError("--hours needs the speed of the machine: leave out --quick, or name it, --machine 4xrtx4090")
    text = write_recipe(goal_of(dials, place, options.use, options.corpus), options.recipe)
    print(f"\n{options.recipe} is written: {text.splitlines()[0].removeprefix('# ')}", file=sys.stderr)


if __name__ == "__main__":
    main()

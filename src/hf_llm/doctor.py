"""Check this host: what it has, how fast it is, what would stop a training. Write a launch config or a recipe for it.

    python -m hf_llm.doctor
    python -m hf_llm.doctor --quick                                    # without timing anything
    python -m hf_llm.doctor --accelerate-config accelerate_configs/this_machine.yaml
    python -m hf_llm.doctor --params 125M --use chat --hours 24 --machine 4xrtx4090 --recipe my.yaml

The exit code is 1 where a problem would stop training. An existing file is never overwritten.
"""

import argparse
import json
import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm.core.command_line import CommandParser
from hf_llm.core.errors import UserError, command
from hf_llm.hardware.devices import Device, detect_hardware, training_dtype
from hf_llm.pipeline.sizing import SIZING_KEYS
from hf_llm.planning.recipe_generator import parse_goal, write_recipe

if TYPE_CHECKING:
    from hf_llm.hardware.environment_checks import Finding
    from hf_llm.hardware.microbenchmarks import Rate


# Seconds for the matrix products of one type: on a CPU the fastest size is found early.
CPU_SECONDS_PER_TYPE = 0.5
GPU_SECONDS_PER_TYPE = 2.0


@command
def main(argv: list[str] | None = None) -> None:
    options = build_parser().parse_args(argv)

    from hf_llm.hardware.environment_checks import check_environment

    count, device = detect_hardware()
    findings = check_environment()
    rates = []
    if not options.quick:
        rates, problems = measure_rates(count, device)
        findings += problems

    machine = choose_machine_value(count, device, rates)
    if options.json:
        print_json(findings, rates, machine)
    else:
        lines = [*format_findings(findings), *format_rates(rates), *format_machine_hint(machine)]
        print("\n".join(lines))

    if options.accelerate_config:
        write_launch_config(options.accelerate_config, count, device)
    has_goal = any(getattr(options, key) for key in SIZING_KEYS)
    if options.recipe or has_goal:
        write_goal_recipe(options, machine)

    if any(finding.level == "problem" for finding in findings):
        sys.exit(1)


def build_parser() -> argparse.ArgumentParser:
    parser = CommandParser("python -m hf_llm.doctor", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="measure nothing")
    parser.add_argument("--json", action="store_true", help="print the findings and rates as JSON")
    parser.add_argument("--accelerate-config", type=Path, metavar="FILE", help="write a config for `accelerate launch`")

    goal = parser.add_argument_group("a recipe for a goal")
    goal.add_argument("--recipe", type=Path, metavar="FILE", help="where to write it")
    goal.add_argument("--params", help="parameters, as in 125M")
    goal.add_argument("--depth", help="layers, as in 12")
    goal.add_argument("--flops", help="arithmetic to spend, as in 1e18")
    goal.add_argument("--hours", help="of pretraining on --machine; alone, or with --params or --depth")
    goal.add_argument("--use", choices=("base", "chat"), default="chat", help="what the model is for (default: chat)")
    goal.add_argument("--machine", help="the hardware, as in 4xrtx4090 (default: this host's)")
    goal.add_argument("--corpus", type=Path, metavar="PATH", help="a file or folder of texts to train on")
    return parser


def measure_rates(count: int, device: Device) -> "tuple[list[Rate], list[Finding]]":
    """Measure matrix products, memory, and an all-reduce between processes of this host.

    Where no data sheet says how fast the device trains, a training is timed too. Returns the rates, and the findings
    about refused or missing ones.
    """
    import torch

    from hf_llm.hardware.environment_checks import Finding
    from hf_llm.hardware.microbenchmarks import (
        bandwidth_bound,
        matmul_bounds,
        measure_all_reduce_rate,
        measure_copy_rate,
        measure_matmul_rates,
        refuse_above_bound,
    )
    from hf_llm.hardware.runtime import device_type
    from hf_llm.planning.speed import measure_training_rate

    torch_device = torch.device(device_type())
    bounds = matmul_bounds(device)
    is_cpu = torch_device.type == "cpu"
    rates = measure_matmul_rates(torch_device, bounds, CPU_SECONDS_PER_TYPE if is_cpu else GPU_SECONDS_PER_TYPE)
    rates.append(measure_copy_rate(torch_device, bandwidth_bound(device), 0.3 if is_cpu else 1.0))
    problems = []

    can_all_reduce = is_cpu or (torch_device.type != "mps" and count > 1)
    if can_all_reduce:
        try:
            rates.append(measure_all_reduce_rate(max(count, 2), torch_device.type))
        except (RuntimeError, TimeoutError) as error:
            level = "problem" if count > 1 else "note"
            remedy = "several processes cannot train together here; NCCL_DEBUG=INFO says more, one GPU still works"
            problems.append(Finding("all-reduce", str(error), level, remedy))

    if not training_dtype(device):
        training_rate = measure_training_rate()
        rates.append(refuse_above_bound(training_rate, bounds.get(training_rate.dtype)))

    for rate in rates:
        if rate.refused:
            figure = " ".join(str(part) for part in (rate.what, rate.dtype, rate.side) if part)
            problems.append(Finding(figure, rate.refused, "note", "this figure is not used; run it again"))
    return rates, problems


def choose_machine_value(count: int, device: Device, rates: "list[Rate]") -> str | float | None:
    """Return what a recipe writes under `machine` for this host.

    It is the name where the data sheet is known, else the FLOP/s at which it trains; None where they were not measured.
    """
    if training_dtype(device):
        return f"{count}x{device.key}"
    training_rates = [rate.value for rate in rates if rate.what == "training" and not rate.refused]
    if not training_rates:
        return None
    return float(f"{count * training_rates[0]:.3g}")


def print_json(findings: "list[Finding]", rates: "list[Rate]", machine: str | float | None) -> None:
    report = {
        "findings": [asdict(finding) for finding in findings],
        "rates": [asdict(rate) for rate in rates],
        "machine": machine,
    }
    print(json.dumps(report, indent=2))


def format_findings(findings: "list[Finding]") -> list[str]:
    """Format a line for each finding and, below what is not right, the remedy."""
    width = max(len(finding.what) for finding in findings)
    lines = []
    for finding in findings:
        lines.append(f"{finding.level:<8} {finding.what:<{width}}  {finding.value}")
        if finding.remedy:
            lines.append(f"{'':<8} {'':<{width}}  -> {finding.remedy}")
    return lines


def format_rates(rates: "list[Rate]") -> list[str]:
    """Format a table of the products by type and size, then a line for each other rate."""
    lines = []
    products = [rate for rate in rates if rate.what == "matmul"]
    if products:
        lines += ["", *_format_products(products)]

    for rate in rates:
        if rate.what == "copy":
            lines.append(_format_rate_line("memory, copying, GB/s", rate))
        if rate.what == "all-reduce":
            lines.append(_format_rate_line(f"all-reduce ({rate.dtype}), GB/s", rate))
        if rate.what == "training":
            lines.append(_format_rate_line(f"training in {rate.dtype}, GFLOP/s", rate))
    return lines


def _format_products(products: "list[Rate]") -> list[str]:
    """Format the table of matrix products: a line for each type, a column for each size."""
    sides = sorted({rate.side for rate in products})
    dtypes = dict.fromkeys(rate.dtype for rate in products)
    rate_by_cell = {(rate.dtype, rate.side): rate for rate in products}

    heading = f"{'matrix products, GFLOP/s':<26}"
    for side in sides:
        heading += f"{side:>10,}"

    lines = [heading]
    for dtype in dtypes:
        line = f"  {dtype:<24}"
        for side in sides:
            figure = _format_figure(rate_by_cell.get((dtype, side)))
            line += f"{figure:>10}"
        lines.append(line)
    return lines


def _format_rate_line(title: str, rate: "Rate") -> str:
    return f"{title:<26}{_format_figure(rate):>10}"


def _format_figure(rate: "Rate | None") -> str:
    """Format a rate in units of 1e9 a second. A refused figure is not shown."""
    if rate is None:
        return ""
    if rate.refused:
        return "refused"
    return f"{rate.value / 1e9:,.3g}" if rate.value < 1e12 else f"{rate.value / 1e9:,.0f}"


def format_machine_hint(machine: str | float | None) -> list[str]:
    """Format what a recipe with `hours:` needs."""
    if machine is None:
        return []
    value = f"{machine:g}" if isinstance(machine, float) else machine
    return ["", f"In a recipe with `hours:`, this host is `machine: {value}`."]


def write_launch_config(path: Path, count: int, device: Device) -> None:
    """Write a config for `accelerate launch`, with a process for each device.

    Raises UserError where the file exists already.
    """
    launch = f"accelerate launch --config_file {shlex.quote(str(path))} -m hf_llm.pretrain recipes/quickstart.yaml"
    lines = [
        f"# {launch}",
        f"# {count} x {device.name}, as hf_llm.doctor detected them.",
        "compute_environment: LOCAL_MACHINE",
        "distributed_type: MULTI_GPU" if count > 1 else 'distributed_type: "NO"',
        "num_machines: 1",
        f"num_processes: {count}",
    ]
    if device.key == "cpu":
        lines.append("use_cpu: true")

    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "x", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    except FileExistsError:
        raise UserError(f"{path} exists already and is never overwritten; give another name") from None
    print(f"\nwrote {path}: {launch}", file=sys.stderr)


def write_goal_recipe(options: argparse.Namespace, machine: str | float | None) -> None:
    """Write the recipe for the goal on the command line. `machine` is this host's value where none is given."""
    if not options.recipe:
        raise UserError("a goal needs --recipe FILE, where the recipe goes")
    sizing = {key: getattr(options, key) for key in SIZING_KEYS}
    machine = options.machine or machine
    if options.hours and machine is None:
        raise UserError(
            "--hours needs the speed of this host: leave out --quick, or name hardware, --machine 4xrtx4090"
        )

    goal = parse_goal(sizing, machine, options.use, options.corpus)
    text = write_recipe(goal, options.recipe)
    command_line = text.splitlines()[0].removeprefix("# ")
    print(f"\nwrote {options.recipe}: {command_line}", file=sys.stderr)


if __name__ == "__main__":
    main()

"""Write the mean of the last checkpoints of a training as a model of its own.

    python -m hf_llm.average_checkpoints runs/quickstart/base --last 2 --output runs/quickstart/averaged

A training keeps `training.save_total_limit` checkpoints, two unless it says more. At a high learning rate the mean of
several is ahead of the last (LAWA, https://arxiv.org/abs/2306.03241; docs/lab.md). Checkpoints stay as they are; the
output opens with `from_pretrained`.
"""

import argparse
import json
from pathlib import Path

import torch

from hf_llm.core.errors import UserError, command
from hf_llm.core.manifest import BEGUN, read_manifest, write_manifest
from hf_llm.model.load import load_model, load_tokenizer
from hf_llm.pipeline.run import licenses_of
from hf_llm.reporting.model_card import model_card
from hf_llm.training.fault_tolerance.checkpoints import complete_checkpoints, fault, step_of


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the folder of a training, with its checkpoints")
    parser.add_argument("--last", type=int, required=True, help="how many of the newest checkpoints to take")
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    arguments = parser.parse_args(argv)
    steps = average_checkpoints(arguments.folder, arguments.last, arguments.output)
    print(f"{arguments.output}: the mean of the checkpoints at steps {', '.join(map(str, steps))}")


@torch.no_grad()
def average_checkpoints(folder: Path, last: int, output: Path) -> list[int]:
    """Write the mean of the `last` whole checkpoints of `folder` to the new folder `output`; their steps are returned.

    Raises UserError where there are fewer, or one is damaged, holds no model or one of another shape, or where `output`
    is in use.
    """
    if output.exists() and any(output.iterdir()):
        raise UserError(f"--output: {output} is not empty; name a new folder")
    checkpoints = newest(folder, last)
    model = mean_of(checkpoints)
    model.save_pretrained(output)
    load_tokenizer(checkpoints[-1]).save_pretrained(output)
    steps = [step_of(checkpoint) for checkpoint in checkpoints]
    describe(folder, output, steps)
    return steps


def newest(folder: Path, last: int) -> list[Path]:
    """The `last` whole checkpoints, by step. Raises UserError where there are fewer, or one is damaged."""
    if last < 2:
        raise UserError(f"--last: {last}; a mean takes two checkpoints or more")
    found = complete_checkpoints(folder)
    if len(found) < last:
        steps = ", ".join(str(step_of(checkpoint)) for checkpoint in found)
        raise UserError(
            f"--last: {folder} has {len(found)} whole checkpoints{f' (steps {steps})' if found else ''}, not {last}; "
            f"a training keeps as many as its training.save_total_limit says"
        )
    for checkpoint in found[-last:]:
        if problem := fault(checkpoint):
            raise UserError(f"{checkpoint}: {problem[1]}; take fewer than {last}, or put a good copy back in place")
    return found[-last:]


def mean_of(checkpoints: list[Path]) -> torch.nn.Module:
    """The model of the last checkpoint with the mean of all their weights, summed in float64, in the weights' own type.

    What is not a floating-point number is the last checkpoint's. Raises UserError where they differ in shape.
    """
    sums = {}
    for checkpoint in checkpoints:
        if (checkpoint / "adapter_config.json").exists():
            raise UserError(f"{checkpoint} holds an adapter; only whole models are averaged")
        model = load_model(checkpoint, dtype="auto", objective=None)
        weights = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}
        if sums and {name: x.shape for name, x in weights.items()} != {name: x.shape for name, x in sums.items()}:
            raise UserError(f"{checkpoint} is a model of another shape than {checkpoints[0]}; average them apart")
        for name, tensor in weights.items():
            sums[name] = sums[name] + tensor if name in sums else tensor.double()
    for name, tensor in weights.items():
        tensor.copy_(sums[name] / len(checkpoints))
    return model


def describe(folder: Path, output: Path, steps: list[int]) -> None:
    """Write `output`'s manifest, after that of `folder`, finished or not, and its model card."""
    begun = folder / BEGUN
    before = read_manifest(folder) or (json.loads(begun.read_text(encoding="utf-8")) if begun.exists() else {})
    inputs, objective = before.get("inputs", {}), before.get("facts", {}).get("objective")
    data = before.get("settings", {}).get(f"{folder.name}.data", [])
    licenses = {*licenses_of(*(folder.parent / name for name in inputs)), *before.get("licenses", [])}
    write_manifest(
        output,
        folder=before.get("folder", folder.name),
        headline=f"the mean of {len(steps)} checkpoints, to step {steps[-1]}",
        licenses=sorted(licenses | {source["license"] for source in data}),
        settings=before.get("settings", {}),
        inputs=inputs,
        recipe=before.get("recipe"),
        facts={"averaged steps": steps, **({"objective": objective} if objective else {})},
    )
    (output / "README.md").write_text(model_card(output), encoding="utf-8")


if __name__ == "__main__":
    main()

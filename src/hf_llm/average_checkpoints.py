"""Write the mean of the last checkpoints of a training as a model of its own.

    python -m hf_llm.average_checkpoints runs/quickstart/base --last 2    # writes runs/quickstart/base-averaged
    python -m hf_llm.average_checkpoints runs/quickstart/base --last 2 --output runs/quickstart/averaged

A training keeps `training.save_total_limit` checkpoints, by default two. At a high learning rate the mean of several
is better than the last one (LAWA, https://arxiv.org/abs/2306.03241; docs/lab.md). Checkpoints stay as they are; the
output opens with `from_pretrained`.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm.core.command_line import CommandParser
from hf_llm.core.errors import UserError, command
from hf_llm.core.manifest import BEGUN_FILE, read_manifest, write_manifest
from hf_llm.pipeline.find_model import default_output, is_run
from hf_llm.pipeline.run import licenses_of
from hf_llm.pipeline.stages import MODELS
from hf_llm.reporting.model_card import write_model_card
from hf_llm.tokenization.compare_tokenizers import find_difference
from hf_llm.training.fault_tolerance.checkpoints import checkpoint_step, complete_checkpoints, verify_checkpoint

if TYPE_CHECKING:
    import torch


MIN_CHECKPOINTS = 2


@command
def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="the folder of a training with its checkpoints; of a run, its last")
    parser.add_argument("--last", type=int, required=True, help="how many of the newest checkpoints to average")
    parser.add_argument("--output", type=Path, help="a new folder; by default <folder>-averaged")
    arguments = parser.parse_args(argv)

    folder = find_training(arguments.folder)
    output = arguments.output or default_output(folder, "averaged")
    steps = average_checkpoints(folder, arguments.last, output)
    print(f"{output}: the mean of the checkpoints at steps {', '.join(map(str, steps))}")


def find_training(folder: Path) -> Path:
    """Return the folder itself; of a run, that of its last stage with checkpoints."""
    if not is_run(folder):
        return folder
    trainings = [folder / stage for stage in MODELS if complete_checkpoints(folder / stage)]
    if not trainings:
        raise UserError(f"{folder}: no stage of this run has checkpoints")
    print(f"{folder}: its last training with checkpoints is {trainings[-1]}", file=sys.stderr)
    return trainings[-1]


def average_checkpoints(folder: Path, last: int, output: Path) -> list[int]:
    """Write the mean of the `last` complete checkpoints of `folder` to the new folder `output`. Return their steps.

    Raises UserError where there are fewer, or one is damaged, holds no model, one of another shape or one with another
    tokenizer, or where `output` is in use.
    """
    from hf_llm.model.load import load_tokenizer

    if output.exists() and any(output.iterdir()):
        raise UserError(f"--output: {output} is not empty; name a new folder")
    checkpoints = select_newest(folder, last)
    model = average_weights(checkpoints)
    check_one_tokenizer(checkpoints)
    model.save_pretrained(output)
    load_tokenizer(checkpoints[-1]).save_pretrained(output)
    steps = [checkpoint_step(checkpoint) for checkpoint in checkpoints]
    write_manifest_and_card(folder, output, steps)
    return steps


def select_newest(folder: Path, last: int) -> list[Path]:
    """Return the `last` complete checkpoints, by step. Raises UserError where there are fewer, or one is damaged."""
    if last < MIN_CHECKPOINTS:
        raise UserError(f"--last: {last}; a mean takes two checkpoints or more")

    checkpoints = complete_checkpoints(folder)
    if len(checkpoints) < last:
        count = f"{len(checkpoints)} complete checkpoints"
        if checkpoints:
            count += f" (steps {', '.join(str(checkpoint_step(checkpoint)) for checkpoint in checkpoints)})"
        raise UserError(
            f"--last: {folder} has {count}, not {last}; a training keeps as many as its training.save_total_limit says"
        )

    newest = checkpoints[-last:]
    for checkpoint in newest:
        verification_error = verify_checkpoint(checkpoint)
        if verification_error:
            _, reason = verification_error
            raise UserError(f"{checkpoint}: {reason}; take fewer than {last}, or put a good copy back in place")
    return newest


def check_one_tokenizer(checkpoints: list[Path]) -> None:
    """Raise UserError where the checkpoints have different tokenizers: their rows would stand for different words."""
    from hf_llm.model.load import load_tokenizer

    newest = load_tokenizer(checkpoints[-1])
    for checkpoint in checkpoints[:-1]:
        difference = find_difference(load_tokenizer(checkpoint), newest)
        if difference:
            raise UserError(
                f"{checkpoint} has another tokenizer than {checkpoints[-1]}: {difference}; average them apart"
            )


def average_weights(checkpoints: list[Path]) -> "torch.nn.Module":
    """Return the model of the last checkpoint with the mean of all their weights, summed in float64, in the weights'
    own type.

    Tensors of other than floating-point numbers are the last checkpoint's. Raises UserError where the models differ in
    shape.
    """
    from hf_llm.model.load import load_model

    sums = {}
    for checkpoint in checkpoints:
        if (checkpoint / "adapter_config.json").exists():
            raise UserError(f"{checkpoint} holds an adapter; only whole models are averaged")
        model = load_model(checkpoint, dtype="auto", objective=None)
        weights = {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}

        if not sums:
            sums = {name: tensor.double() for name, tensor in weights.items()}
            continue
        if tensor_shapes(weights) != tensor_shapes(sums):
            raise UserError(f"{checkpoint} is a model of another shape than {checkpoints[0]}; average them apart")
        for name, tensor in weights.items():
            sums[name] = sums[name] + tensor

    for name, tensor in weights.items():
        tensor.copy_(sums[name] / len(checkpoints))
    return model


def tensor_shapes(tensors: "dict[str, torch.Tensor]") -> "dict[str, torch.Size]":
    """Return the shape of each tensor, by name."""
    return {name: tensor.shape for name, tensor in tensors.items()}


def write_manifest_and_card(folder: Path, output: Path, steps: list[int]) -> None:
    """Write `output`'s manifest, after that of `folder`, which may be complete or not, and its model card."""
    begun = folder / BEGUN_FILE
    manifest = read_manifest(folder)
    if not manifest:
        manifest = json.loads(begun.read_text(encoding="utf-8")) if begun.exists() else {}

    settings = manifest.get("settings", {})
    inputs = manifest.get("inputs", {})
    licenses = {*licenses_of(*(folder.parent / name for name in inputs)), *manifest.get("licenses", [])}
    licenses |= {source["license"] for source in settings.get(f"{folder.name}.data", [])}
    facts = {"averaged steps": steps}
    objective = manifest.get("facts", {}).get("objective")
    if objective:
        facts["objective"] = objective

    write_manifest(
        output,
        folder=manifest.get("folder", folder.name),
        headline=f"the mean of {len(steps)} checkpoints, to step {steps[-1]}",
        licenses=sorted(licenses),
        settings=settings,
        inputs=inputs,
        recipe=manifest.get("recipe"),
        facts=facts,
    )
    write_model_card(output)


if __name__ == "__main__":
    main()

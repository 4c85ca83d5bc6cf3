"""Fit a scaling law to a few small trainings of a recipe, predict a larger one, and train that one to check it.

    python -m hf_llm.scaling recipes/examples/one_dial.yaml --params 0.6M,1M,2M,4M --predict 8M --dry-run
    python -m hf_llm.scaling recipes/examples/one_dial.yaml --flops 1e13,3e13,1e14 --predict 5e14 --check

The dial (docs/sizing.md) makes each size: width, batch, learning rate and tokens; what the recipe writes itself stays.
The law is L = E + A / C^alpha (hf_llm.experiments.scaling_law), L bits per byte of held-out text, C the FLOPs of a
training.
Each training is a run in runs/<name>/scaling/<size>/seed-<n>; the page is runs/<name>/scaling/index.html. The same
command goes on where it was interrupted.
"""

import argparse
import re
import sys
from typing import Any

import numpy as np

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError, command
from hf_llm.experiments.estimate import Planned, plan
from hf_llm.experiments.experiment import Experiment, options
from hf_llm.experiments.page import write_page
from hf_llm.experiments.results import table
from hf_llm.experiments.scaling_law import Law, NoLaw, check_reach, check_sizes
from hf_llm.experiments.variants import Variant, data_name, pretraining_tree
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.sizing import SIZING_KEYS, parse_quantity

BY = ("params", "depth", "flops")
CURVE = 60  # points of a drawn law


@command
def main(argv: list[str] | None = None) -> None:
    given, rest = parse(list(sys.argv[1:] if argv is None else argv))
    run = Run(rest)
    small = [sized(rest, run, given.dial, size, given.into) for size in given.sizes]
    larger = sized(rest, run, given.dial, given.predict, given.into)
    [goal] = plan([larger])
    all_of_it = Experiment(
        run, given.into, [*small, larger] if given.check else small, given.seeds, "none", compared=False
    )
    check(all_of_it.planned[: len(small)], goal, run)
    all_of_it.announce()
    if given.dry_run:
        return
    experiment = Experiment(run, given.into, small, given.seeds, "none", compared=False)
    failed = experiment.train()
    law = told(experiment, goal)
    if given.check and not law["why"]:
        print_main(f"\n{law['summary']}\nNow it is trained, to check that.")
        experiment = all_of_it
        failed += experiment.train()
        law = told(experiment, goal)
    found = experiment.results()
    page = write_page(experiment.folder, found, experiment.trainings, law)
    print_main(f"\n{table(found)}\n\n{law['text'] or 'No law: ' + law['why']}\n{law['summary']}\n{page}")
    sys.exit(1 if failed else 0)


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """This command's own options, and the rest: the recipe and its overrides."""
    parser = options("scaling", __doc__, "scaling")
    several = parser.add_mutually_exclusive_group(required=True)
    for dial in BY:
        several.add_argument(f"--{dial}", metavar="SIZE,SIZE,SIZE", help=f"the sizes to train, by the dial's {dial}")
    parser.add_argument("--predict", required=True, metavar="SIZE", help="the larger one, by the same dial")
    parser.add_argument("--check", action="store_true", help="train it too, and say how far off the prediction was")
    given, rest = parser.parse_known_args(argv)
    if not rest:
        parser.error("name a recipe first, as recipes/examples/one_dial.yaml")
    given.dial = next(dial for dial in BY if getattr(given, dial))
    sizes = {parse_quantity(size, f"--{given.dial}"): size.strip() for size in getattr(given, given.dial).split(",")}
    given.sizes = [sizes[size] for size in sorted(sizes)]
    if parse_quantity(given.predict, "--predict") <= max(sizes):
        raise UserError(f"--predict {given.predict}: is no larger than {given.sizes[-1]}, which is trained")
    return given, rest


def sized(rest: list[str], run: Run, dial: str, size: str, into: str) -> Variant:
    """The recipe with its dial at `size`."""
    turned = [f"--{other}=null" for other in SIZING_KEYS if other != dial]
    tree = pretraining_tree(Run([*rest, *turned, f"--{dial}={size}"]).tree)
    tree["name"] = data_name(tree, pretraining_tree(run.tree), into)
    return Variant(re.sub(r"[^\w.-]", "", size), {dial: size}, tree)


def check(small: list[Planned], goal: Planned, run: Run) -> None:
    """Raise UserError where such trainings will allow no law or no prediction, and say what makes it another law."""
    if any(entry.compute is None for entry in (*small, goal)):
        raise UserError("pretrain.training.num_train_epochs: take it out, so that the dial decides the tokens")
    try:
        check_sizes([entry.compute for entry in small])
        check_reach([entry.compute for entry in small], goal.compute)
    except NoLaw as reason:
        written = [f"model.{key}" for key in run.tree.get("model") or {} if f"model.{key}" not in run.derived]
        fixed = f" (the recipe itself writes {', '.join(written)})" if written else ""
        raise UserError(f"{reason}{fixed}") from None
    steps = "pretrain.training.max_steps"
    if len({entry.prospective.section.training.get("max_steps") for entry in small}) == 1:
        print_main(f"{steps} is the same for all sizes: this law is not that of the best models for their arithmetic")


def told(experiment: Experiment, goal: Planned) -> dict[str, Any]:
    """The law through what is trained, what it predicts and how far off that is, as plain values for the page."""
    rows = {row["name"]: row for row in experiment.results()["variants"]}
    name = goal.variant.name
    points = sorted(
        (entry.compute, rows[entry.variant.name]["mean"], entry.variant.name)
        for entry in experiment.planned
        if entry.variant.name != name and rows[entry.variant.name]["mean"] is not None
    )
    found = {"points": [point[:2] for point in points], "why": "", "text": "", "residual": None}
    found |= {"curve": [], "band": {}, "predictions": [], "summary": "The points allow no prediction."}
    try:
        law = Law(found["points"])
        predicted = law.predict(goal.compute)
    except NoLaw as reason:
        return found | {"why": str(reason)}
    measured = rows.get(name, {"mean": None})["mean"]
    found["predictions"] = [row(name, predicted, measured)]
    if len(points) > 3:
        found["predictions"] += again(points)
    flops = np.geomspace(points[0][0], goal.compute, CURVE).tolist()
    band = [law.predict(each) for each in flops]
    return found | {
        "text": str(law),
        "residual": law.residual,
        "curve": [(p.flops, p.loss) for p in band],
        "band": {"95% from": [(p.flops, p.low) for p in band], "95% to": [(p.flops, p.high) for p in band]},
        "summary": summary(found["predictions"][0]),
    }


def again(points: list[tuple[float, float, str]]) -> list[dict[str, Any]]:
    """The largest that is trained, predicted from the smaller ones: how far to trust the law."""
    *smaller, (flops, measured, name) = points
    try:
        predicted = Law([point[:2] for point in smaller]).predict(flops)
    except NoLaw:
        return []
    return [row(f"{name}, from the smaller ones", predicted, measured)]


def row(name: str, predicted: Any, measured: float | None) -> dict[str, Any]:
    """A prediction beside what came."""
    within = measured is not None and predicted.low <= measured <= predicted.high
    note = "" if measured is None else "within the interval" if within else "outside the interval"
    return {"name": name, **vars(predicted), "measured": measured, "note": note}


def summary(found: dict[str, Any]) -> str:
    """The prediction in one sentence."""
    interval = f"{found['low']:.4f} to {found['high']:.4f}"
    words = f"{found['name']}: {found['loss']:.4f} bits per byte are predicted ({interval})"
    if found["measured"] is None:
        return words + "."
    return f"{words}; measured {found['measured']:.4f}, off by {found['loss'] / found['measured'] - 1:+.2%}."


if __name__ == "__main__":
    main()

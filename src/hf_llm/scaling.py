"""Fit a scaling law to a few small trainings of a recipe, predict a larger one, and train that one to check it.

    python -m hf_llm.scaling recipes/examples/one_dial.yaml --params 0.6M,1M,2M,4M --predict 8M --dry-run
    python -m hf_llm.scaling recipes/examples/one_dial.yaml --flops 1e13,3e13,1e14 --predict 5e14 --check

Sizing (docs/sizing.md) derives each size's width, batch, learning rate and tokens; what the recipe sets itself is kept.
The law is L = E + A / C^alpha (hf_llm.experiments.scaling_law), L the validation loss in bits per byte, C the FLOPs of
a training.

Each training is a run in runs/<name>/scaling/<size>/seed-<n>; the page is runs/<name>/scaling/index.html. The same
command resumes an interrupted experiment.
"""

import argparse
import re
import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError, command
from hf_llm.experiments.command_line import build_parser
from hf_llm.experiments.scaling_law import NoLaw, Prediction, ScalingLaw, check_extrapolation, check_sizes
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.sizing import SIZING_KEYS, parse_quantity

if TYPE_CHECKING:
    from hf_llm.experiments.estimate import PlannedVariant
    from hf_llm.experiments.experiment import Experiment
    from hf_llm.experiments.variants import Variant


SIZE_KEYS = ("params", "depth", "flops")  # the sizing keys that a scaling law can be fitted over
CURVE_POINTS = 60


@command
def main(argv: list[str] | None = None) -> None:
    options, recipe_argv = parse_command_line(list(sys.argv[1:] if argv is None else argv))
    run = Run(recipe_argv)
    small = [build_variant(recipe_argv, run, options.size_key, size, options.into) for size in options.sizes]
    large = build_variant(recipe_argv, run, options.size_key, options.predict, options.into)

    from hf_llm.experiments.estimate import plan_variants
    from hf_llm.experiments.experiment import Experiment
    from hf_llm.experiments.page import write_page
    from hf_llm.experiments.results import format_table

    def plan_experiment(variants: "list[Variant]") -> "Experiment":
        return Experiment(run, options.into, variants, options.seeds, equal="none", compared=False)

    # Everything that may be trained is checked and announced before the first training.
    [planned_large] = plan_variants([large])
    full_experiment = plan_experiment([*small, large] if options.check else small)
    check_predictable(full_experiment.planned[: len(small)], planned_large, run)
    full_experiment.print_plan()
    if options.dry_run:
        return

    experiment = plan_experiment(small)
    failed = experiment.run_trainings()
    law = fit_law(experiment, planned_large)

    # The large size is trained only where the small ones allow a prediction.
    if options.check and not law["why"]:
        print_main(f"\n{law['summary']}\nNow this size is trained, to check the prediction.")
        experiment = full_experiment
        failed += experiment.run_trainings()
        law = fit_law(experiment, planned_large)

    results = experiment.results()
    page = write_page(experiment.folder, results, experiment.trainings, law)
    formula = law["text"] or f"No scaling law: {law['why']}"
    print_main(f"\n{format_table(results)}\n\n{formula}\n{law['summary']}\n{page}")
    sys.exit(1 if failed else 0)


def parse_command_line(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into this command's own options, and the recipe with its overrides.

    The options also hold `size_key`, one of SIZE_KEYS, and `sizes`, its values as text, the smallest first.
    """
    parser = build_parser("scaling", __doc__, "scaling")
    size_options = parser.add_mutually_exclusive_group(required=True)
    for key in SIZE_KEYS:
        size_options.add_argument(f"--{key}", metavar="SIZE,SIZE,SIZE", help=f"the sizes to train, by sizing key {key}")
    parser.add_argument("--predict", required=True, metavar="SIZE", help="the larger size, by the same key")
    parser.add_argument("--check", action="store_true", help="train the larger size too and report the error")
    options, recipe_argv = parser.parse_known_args(argv)
    if not recipe_argv:
        parser.error("name a recipe first, such as recipes/examples/one_dial.yaml")

    options.size_key = next(key for key in SIZE_KEYS if getattr(options, key))
    texts_by_size = {}
    for text in getattr(options, options.size_key).split(","):
        texts_by_size[parse_quantity(text, f"--{options.size_key}")] = text.strip()
    options.sizes = [text for _, text in sorted(texts_by_size.items())]
    if parse_quantity(options.predict, "--predict") <= max(texts_by_size):
        raise UserError(f"--predict {options.predict}: is not larger than {options.sizes[-1]}, which is trained")
    return options, recipe_argv


def build_variant(recipe_argv: list[str], run: Run, size_key: str, size: str, into: str) -> "Variant":
    """Build the recipe of a size."""
    from hf_llm.experiments.variants import Variant, name_data_run, select_pretraining_keys

    other_keys = [f"--{key}=null" for key in SIZING_KEYS if key != size_key]
    sized_run = Run([*recipe_argv, *other_keys, f"--{size_key}={size}"])
    tree = select_pretraining_keys(sized_run.tree)
    tree["name"] = name_data_run(tree, select_pretraining_keys(run.tree), into)
    folder_name = re.sub(r"[^\w.-]", "", size)
    return Variant(folder_name, {size_key: size}, tree)


def check_predictable(small: "list[PlannedVariant]", large: "PlannedVariant", run: Run) -> None:
    """Raise UserError where such trainings will allow no law or no prediction.

    Prints a warning where all sizes train for the same number of steps, so that the models are not compute-optimal.
    """
    if any(entry.training_flops is None for entry in (*small, large)):
        raise UserError("pretrain.training.num_train_epochs: remove it, so that sizing determines the tokens")

    small_flops = [entry.training_flops for entry in small]
    try:
        check_sizes(small_flops)
        check_extrapolation(small_flops, large.training_flops)
    except NoLaw as reason:
        # Often the recipe itself sets what sizing would have varied.
        model_keys = [f"model.{key}" for key in run.tree.get("model") or {}]
        set_by_recipe = [key for key in model_keys if key not in run.derived]
        note = f" (the recipe itself sets {', '.join(set_by_recipe)})" if set_by_recipe else ""
        raise UserError(f"{reason}{note}") from None

    steps = {entry.pretraining.section.training.get("max_steps") for entry in small}
    if len(steps) == 1:
        print_main(
            "pretrain.training.max_steps is the same for all sizes: the law is not that of compute-optimal models"
        )


def fit_law(experiment: "Experiment", large: "PlannedVariant") -> dict[str, Any]:
    """Fit the law to what is trained, as plain values for the page: formula, predictions, curve and interval.

    Where there is no law, `why` is the reason.
    """
    means = {row["name"]: row["mean"] for row in experiment.results()["variants"]}
    large_name = large.variant.name
    points = []
    for entry in experiment.planned:
        name = entry.variant.name
        if name != large_name and means[name] is not None:
            points.append((entry.training_flops, means[name], name))
    points.sort()

    law: dict[str, Any] = {
        "points": [(flops, loss) for flops, loss, _ in points],
        "why": "",
        "text": "",
        "residual": None,
        "curve": [],
        "band": {},
        "predictions": [],
        "summary": "The points allow no prediction.",
    }
    try:
        fitted = ScalingLaw(law["points"])
        prediction = fitted.predict(large.training_flops)
    except NoLaw as reason:
        law["why"] = str(reason)
        return law

    large_row = describe_prediction(large_name, prediction, means.get(large_name))
    law["predictions"] = [large_row]
    if len(points) > 3:
        law["predictions"] += predict_largest(points)

    smallest_flops = points[0][0]
    curve_flops = np.geomspace(smallest_flops, large.training_flops, CURVE_POINTS).tolist()
    curve = [fitted.predict(flops) for flops in curve_flops]
    law["text"] = str(fitted)
    law["residual"] = fitted.residual
    law["curve"] = [(point.flops, point.loss) for point in curve]
    law["band"] = {
        "95% from": [(point.flops, point.low) for point in curve],
        "95% to": [(point.flops, point.high) for point in curve],
    }
    law["summary"] = summarize_prediction(large_row)
    return law


def predict_largest(points: list[tuple[float, float, str]]) -> list[dict[str, Any]]:
    """Predict the largest of the points (FLOPs, loss, name) from the others, which shows how far to trust the law.

    Empty where the others allow no law.
    """
    *smaller, (flops, measured, name) = points
    try:
        law = ScalingLaw([(smaller_flops, loss) for smaller_flops, loss, _ in smaller])
        prediction = law.predict(flops)
    except NoLaw:
        return []
    return [describe_prediction(f"{name}, from the smaller ones", prediction, measured)]


def describe_prediction(name: str, prediction: Prediction, measured: float | None) -> dict[str, Any]:
    """Return a table row of a prediction and the measured loss."""
    if measured is None:
        note = ""
    elif prediction.low <= measured <= prediction.high:
        note = "within the interval"
    else:
        note = "outside the interval"
    return {"name": name, **vars(prediction), "measured": measured, "note": note}


def summarize_prediction(row: dict[str, Any]) -> str:
    """State a prediction, and its error where it has been checked, in one sentence."""
    sentence = f"{row['name']}: predicted {row['loss']:.4f} bits per byte ({row['low']:.4f} to {row['high']:.4f})"
    if row["measured"] is None:
        return f"{sentence}."
    error = row["loss"] / row["measured"] - 1
    return f"{sentence}; measured {row['measured']:.4f}, an error of {error:+.2%}."


if __name__ == "__main__":
    main()

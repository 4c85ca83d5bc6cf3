"""Train variants of a recipe at equal size, over several seeds, and report which is better than the recipe.

    python -m hf_llm.ablate recipes/quickstart.yaml --vary model.positions=rope,alibi,learned --seeds 3
    python -m hf_llm.ablate recipes/quickstart.yaml --vary model.norm_type=rms_norm,layer_norm \\
        --vary pretrain.training.learning_rate=2e-3,4e-3 --equal flops --dry-run

The recipe, with overrides such as --pretrain.training.max_steps=200, is the baseline. Values are YAML, lists in
brackets: --vary 'model.layer_types=[full_attention],[sliding_attention]'. Where a key of `model` varies, widths are
fitted so that all variants have as many parameters as the baseline (--equal parameters), or FLOPs per token, within 1%.

Each training is a run in runs/<name>/ablation/<variant>/seed-<n>; the page is runs/<name>/ablation/index.html. The same
command resumes an interrupted experiment, and runs failed trainings again.
"""

import argparse
import sys

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError, command
from hf_llm.experiments.command_line import MATCH_CHOICES, build_parser
from hf_llm.pipeline.run import Run


@command
def main(argv: list[str] | None = None) -> None:
    options, recipe_argv = parse_command_line(list(sys.argv[1:] if argv is None else argv))
    run = Run(recipe_argv)

    from hf_llm.experiments.experiment import Experiment
    from hf_llm.experiments.page import write_page
    from hf_llm.experiments.results import format_table, summarize_comparison
    from hf_llm.experiments.variants import combine_factors, parse_factor, select_pretraining_keys

    factors = dict(parse_factor(text) for text in options.vary)
    variants = combine_factors(select_pretraining_keys(run.tree), factors, options.into)

    equal = options.equal
    if equal is None:
        varies_model = any(key.startswith("model.") for key in factors)
        equal = "parameters" if varies_model else "none"

    experiment = Experiment(run, options.into, variants, options.seeds, equal, compared=True)
    experiment.print_plan()
    if options.dry_run:
        return

    failed = experiment.run_trainings()
    results = experiment.results()
    page = write_page(experiment.folder, results, experiment.trainings)
    print_main(f"\n{format_table(results)}\n\n{summarize_comparison(results)}\n{page}")
    sys.exit(1 if failed else 0)


def parse_command_line(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Split the command line into this command's own options, and the recipe with its overrides."""
    parser = build_parser("ablate", __doc__, "ablation")
    parser.add_argument(
        "--vary",
        action="append",
        metavar="KEY=VALUE,VALUE",
        help="repeat for another key: every combination is trained",
    )
    parser.add_argument(
        "--equal", choices=MATCH_CHOICES, help="what is equal for all variants (parameters where a model key varies)"
    )
    options, recipe_argv = parser.parse_known_args(argv)
    if not recipe_argv:
        parser.error("name a recipe first, such as recipes/quickstart.yaml")
    if not options.vary:
        raise UserError("nothing varies; add for example --vary model.positions=rope,alibi")
    return options, recipe_argv


if __name__ == "__main__":
    main()

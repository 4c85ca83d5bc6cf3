"""Train variants of a recipe and say which is better: every combination of what varies, at equal size, several seeds.

    python -m hf_llm.ablate recipes/quickstart.yaml --vary model.positions=rope,alibi,learned --seeds 3
    python -m hf_llm.ablate recipes/quickstart.yaml --vary model.norm_type=rms_norm,layer_norm \\
        --vary pretrain.training.learning_rate=2e-3,4e-3 --equal flops --dry-run

The recipe, with overrides such as --pretrain.training.max_steps=200, is the baseline. Values are YAML, lists in
brackets: --vary 'model.layer_types=[full_attention],[sliding_attention]'. Where a key of `model` varies, widths are
fitted so that all variants have as many parameters as the baseline (--equal parameters), or FLOPs per token, within 1%.

Each training is a run in runs/<name>/ablation/<variant>/seed-<n>; the page is runs/<name>/ablation/index.html. The same
command goes on where it was interrupted, and tries again what has failed.
"""

import argparse
import sys

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError, command
from hf_llm.experiments.experiment import Experiment, options
from hf_llm.experiments.matched_sizes import EQUAL
from hf_llm.experiments.page import write_page
from hf_llm.experiments.results import summary, table
from hf_llm.experiments.variants import combinations, parse_factor, pretraining_tree
from hf_llm.pipeline.run import Run


@command
def main(argv: list[str] | None = None) -> None:
    given, rest = parse(list(sys.argv[1:] if argv is None else argv))
    run = Run(rest)
    factors = dict(parse_factor(text) for text in given.vary)
    variants = combinations(pretraining_tree(run.tree), factors, given.into)
    equal = given.equal or ("parameters" if any(key.startswith("model.") for key in factors) else "none")
    experiment = Experiment(run, given.into, variants, given.seeds, equal, compared=True)
    experiment.announce()
    if given.dry_run:
        return
    failed = experiment.train()
    found = experiment.results()
    page = write_page(experiment.folder, found, experiment.trainings)
    print_main(f"\n{table(found)}\n\n{summary(found)}\n{page}")
    sys.exit(1 if failed else 0)


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """This command's own options, and the rest: the recipe and its overrides."""
    parser = options("ablate", __doc__, "ablation")
    parser.add_argument(
        "--vary", action="append", metavar="KEY=VALUE,VALUE", help="again for another key: every combination is trained"
    )
    parser.add_argument("--equal", choices=EQUAL, help="what all have as much of (parameters where a model key varies)")
    given, rest = parser.parse_known_args(argv)
    if not rest:
        parser.error("name a recipe first, as recipes/quickstart.yaml")
    if not given.vary:
        raise UserError("nothing varies; add --vary model.positions=rope,alibi, say")
    return given, rest


if __name__ == "__main__":
    main()

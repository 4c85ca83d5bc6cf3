"""The command-line options of hf_llm.ablate and hf_llm.scaling."""

import argparse

from hf_llm.core.command_line import CommandParser

MATCH_CHOICES = ("parameters", "flops", "none")  # what is equal for all variants (hf_llm.experiments.matched_sizes)


def build_parser(program: str, description: str, into: str) -> argparse.ArgumentParser:
    """Build a parser with the options that both commands take."""
    parser = CommandParser(
        f"python -m hf_llm.{program}",
        description=description,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--seeds", type=parse_positive_int, default=1, help="trainings of each variant, seeds counted from the recipe's"
    )
    parser.add_argument("--into", default=into, help="the folder of the experiment, below runs/<name> (%(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="only print sizes and hours")
    return parser


def parse_positive_int(text: str) -> int:
    """Parse an integer of at least 1 for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("expected a number of at least 1")
    return value

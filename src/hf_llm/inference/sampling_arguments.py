"""The command-line options for how to sample tokens, shared by generate and chat."""

import argparse
import math
from typing import Any

from hf_llm.core.errors import UserError

MAX_SEED = 2**63 - 1  # what torch takes
MIN_TEMPERATURE = 1e-3  # below it, logits divided by the temperature are no longer finite


def temperature_problem(temperature: float) -> str:
    """Return what is wrong with a temperature to sample at; empty where it can be used."""
    if math.isfinite(temperature) and temperature >= MIN_TEMPERATURE:
        return ""
    return (
        f"{temperature} cannot be sampled at; give a number from {MIN_TEMPERATURE} on (1 is the model's own "
        "probabilities)"
    )


def add_sampling_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --max-new-tokens, --temperature, --top-p, --top-k, --seed and --greedy."""
    parser.add_argument("--max-new-tokens", type=int, help="most tokens to generate (256, or half the context)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="above 1 more varied, below 1 less (%(default)s)"
    )
    parser.add_argument("--top-p", type=float, default=0.95, help="likeliest tokens up to this share (%(default)s)")
    parser.add_argument("--top-k", type=int, default=0, help="likeliest tokens in number; 0 keeps all (%(default)s)")
    parser.add_argument("--seed", type=int, help="generate the same text each time")
    parser.add_argument("--greedy", action="store_true", help="always take the likeliest token")


def read_sampling_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keys of GenerationConfig that the arguments stand for, all but the length.

    Raises UserError for a wrong value.
    """
    if arguments.max_new_tokens is not None and arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens: {arguments.max_new_tokens} is less than one")
    problem = temperature_problem(arguments.temperature)
    if problem and arguments.temperature != 0:
        raise UserError(f"--temperature: {problem}; 0 or --greedy takes the likeliest token")
    if arguments.seed is not None and not 0 <= arguments.seed <= MAX_SEED:
        raise UserError(f"--seed: {arguments.seed} is not a seed; give a whole number from 0 to {MAX_SEED}")
    if not 0 < arguments.top_p <= 1:  # NaN is not
        raise UserError(f"--top-p: {arguments.top_p} is not a share; give a number above 0, up to 1")
    if arguments.top_k < 0:
        raise UserError(f"--top-k: {arguments.top_k} is negative; 0 keeps all tokens")

    if arguments.greedy or arguments.temperature == 0:
        return {"do_sample": False}
    return {
        "do_sample": True,
        "temperature": arguments.temperature,
        "top_p": arguments.top_p,
        "top_k": arguments.top_k,
    }

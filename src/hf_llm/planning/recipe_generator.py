"""Generate a whole recipe from a goal (`params: 125M`, chat, 24 hours on this host), each value with its reason."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_llm.core.errors import UserError
from hf_llm.pipeline.sizing import (
    TOKENS_PER_PARAMETER,
    ModelShape,
    apply_sizing,
    format_quantity,
    parse_quantity,
    read_shape,
)

MAX_SMALL_PARAMETERS = 20e6  # up to this size the documentation that comes with Python is enough to train on
BYTES_PER_TOKEN = 4  # of English text, about; the vocabulary decides
MAX_USEFUL_EPOCHS = 4  # up to here repeated text is nearly as good as new, https://arxiv.org/abs/2305.16264
FINEWEB_EDU_SUBSETS = (  # GPT-2 tokens, subset
    (1e10, "sample-10BT"),
    (1e11, "sample-100BT"),
    (3.5e11, "sample-350BT"),
)
TOKENS_PER_ROW = 1000  # of FineWeb-Edu, rounded: 9.67M rows of sample-10BT hold 9.95B GPT-2 tokens (its data card)


@dataclass(frozen=True)
class Goal:
    """What the user wants: one sizing key, or `params`, `depth` or `flops` together with hours."""

    sizing_key: str
    amount: str
    """The value of `sizing_key`, as the user wrote it."""
    hours: float | None
    machine: str | float | None
    """As in a recipe: 4xrtx4090, or FLOP/s."""
    use: str
    """What the model is for: `base` or `chat`."""
    corpus: Path | None = None


def parse_goal(sizing: dict[str, str | None], machine: str | float | None, use: str, corpus: Path | None) -> Goal:
    """Make a goal of the command line's `params`, `depth`, `flops` and `hours`.

    Raises UserError where none is given, or two that contradict each other.
    """
    given = {key: value for key, value in sizing.items() if value is not None}
    sizes = [key for key in given if key != "hours"]
    if len(sizes) > 1:
        raise UserError(f"--{sizes[0]} and --{sizes[1]} each fix the model's size; leave one out")
    if not given:
        raise UserError(
            "--recipe needs a goal: --params 125M, --depth 12, --flops 1e18 or --hours 24 (or size and hours)"
        )

    sizing_key = sizes[0] if sizes else "hours"
    hours = None
    if "hours" in given:
        hours = parse_quantity(given["hours"], "--hours")
    if sizing_key == "flops" and hours:
        raise UserError("--flops and --hours each fix the arithmetic to spend; leave one out")
    return Goal(sizing_key, given[sizing_key], hours, machine, use, corpus)


def write_recipe(goal: Goal, path: Path) -> str:
    """Write the recipe to `path` and return it. Raises UserError where the file exists already."""
    if path.exists():
        raise UserError(f"{path} exists already and is never overwritten; give --recipe another name")
    text = build_recipe_text(goal, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
    return text


def build_recipe_text(goal: Goal, path: Path) -> str:
    """Build the recipe as YAML: the first line is the command that runs it, and each derived value has its reason."""
    name = re.sub(r"[^\w.-]+", "-", path.stem).strip("-.") or "model"

    sizing_tree = {"name": name, "seed": 42, goal.sizing_key: goal.amount}
    if goal.machine is not None:
        sizing_tree["machine"] = goal.machine
    extra_hours = goal.hours if goal.sizing_key != "hours" else None
    sized, reasons = apply_sizing(sizing_tree, extra_hours)

    shape = read_shape(sized)
    pretrain = sized["pretrain"]
    tokens = pretrain["tokens_per_step"] * pretrain["training"]["max_steps"]
    is_small = shape.parameters <= MAX_SMALL_PARAMETERS

    tree = {"name": name, "seed": 42}
    tree["corpus"] = _build_corpus_section(goal, shape.parameters, tokens, reasons)
    tree["tokenizer"] = sized["tokenizer"]
    tree["model"] = sized["model"]
    tree["pretrain"] = _build_pretrain_section(pretrain, _choose_sample_prompts(goal, is_small))
    if goal.use == "chat":
        tree["sft"] = _build_sft_section(is_small, reasons)
    tree["evaluate"] = {
        "tokens": pretrain["evaluation_tokens"],
        "prompts": _choose_evaluation_prompts(goal.use, is_small),
    }

    lines = [f"# python -m hf_llm.run {shlex.quote(str(path))}"]
    lines += _describe_goal(goal, shape, tokens)
    lines += _format_lines(tree, reasons, "")
    return "\n".join(lines) + "\n"


def _build_pretrain_section(pretrain: dict[str, Any], prompts: list[str]) -> dict[str, Any]:
    """Order what sizing has filled in for a reader: `training`, the longest section, comes last."""
    section = {key: value for key, value in pretrain.items() if key != "training"}
    section["samples"] = {"prompts": prompts}
    section["training"] = pretrain["training"]
    return section


def _describe_goal(goal: Goal, shape: ModelShape, tokens: float) -> Iterator[str]:
    """Yield the comment at the head: what this trains, on how much, and what of the goal does not go together."""
    wishes = []
    if goal.sizing_key != "hours":
        wishes.append(f"{goal.sizing_key} {goal.amount}")
    if goal.hours:
        wishes.append(f"{goal.hours:g} hours on {goal.machine}")
    parameters = shape.parameters
    yield (
        f"# {format_quantity(parameters)} parameters on {format_quantity(tokens)} tokens, for {' and '.join(wishes)}."
    )

    tokens_per_parameter = tokens / parameters
    if goal.hours and goal.sizing_key != "hours" and tokens_per_parameter < TOKENS_PER_PARAMETER / 2:
        better = format_quantity(parameters * (tokens_per_parameter / TOKENS_PER_PARAMETER) ** 0.5)
        yield (
            f"# That is {tokens_per_parameter:.2g} tokens for each parameter where {TOKENS_PER_PARAMETER} are best: "
            "in these hours a"
        )
        yield f"# model of about {better} would be better. Give --params {better}, or more --hours."
    if goal.hours:
        yield "# The hours are those of pretraining; corpus, tokenizer and chats come on top."


def _build_corpus_section(goal: Goal, parameters: int, tokens: float, reasons: dict[str, str]) -> dict[str, Any]:
    """Choose the texts to train on: the user's, Python's documentation for small models, else FineWeb-Edu."""
    key = "corpus.sources"
    if goal.corpus:
        corpus_tokens = _count_bytes(goal.corpus) / BYTES_PER_TOKEN
        epochs = tokens / corpus_tokens
        reasons[key] = f"about {format_quantity(corpus_tokens)} tokens, seen {epochs:.2g} times"
        if epochs > MAX_USEFUL_EPOCHS:
            reasons[key] += (
                f"; up to {MAX_USEFUL_EPOCHS} times is nearly as good as new text, https://arxiv.org/abs/2305.16264"
            )
        return {"sources": [{"path": str(goal.corpus), "license": "unknown"}]}

    if parameters <= MAX_SMALL_PARAMETERS:
        reasons[key] = "the documentation that comes with Python: no network, and enough for a model of this size"
        installed = ["language_reference", "standard_library", "packages"]
        return {"sources": [{"installed": installed, "license": "psf-2.0"}]}

    # The smallest subset that holds the tokens, and a fifth more rows than they take.
    large_enough = [name for size, name in FINEWEB_EDU_SUBSETS if tokens < 0.9 * size]
    subset = large_enough[0] if large_enough else FINEWEB_EDU_SUBSETS[-1][1]
    take = round(tokens / TOKENS_PER_ROW * 1.2 / 10_000 + 1) * 10_000
    reasons[key] = (
        f"educational web text; rows for {format_quantity(tokens)} tokens and a fifth more, at {TOKENS_PER_ROW:,} a row"
    )
    source = {"hub": "HuggingFaceFW/fineweb-edu", "subset": subset, "split": "train", "take": take, "license": "odc-by"}
    return {"sources": [source]}


def _count_bytes(path: Path) -> int:
    """Count the bytes of a file or folder. Raises UserError where there are none."""
    if not path.exists():
        raise UserError(f"--corpus {path}: no such file or folder")
    files = [path] if path.is_file() else path.rglob("*")
    size = sum(file.stat().st_size for file in files if file.is_file())
    if not size:
        raise UserError(f"--corpus {path}: is empty")
    return size


def _build_sft_section(is_small: bool, reasons: dict[str, str]) -> dict[str, Any]:
    """Choose chats to train on, and the settings of the recipes that come with hf_llm for small and large models."""
    reasons["sft.data"] = "questions on the same documentation" if is_small else "chats of many kinds"
    reasons["sft.lora"] = "adapters on all linear layers; remove this to train every weight"

    training = {"num_train_epochs": 1, "lr_scheduler_type": "cosine", "warmup_steps": 0.03}
    if is_small:
        data = {"installed": "docs", "take": 3000, "license": "psf-2.0"}
        training["learning_rate"] = 2e-3
        training["per_device_train_batch_size"] = 16
        rank = 16
    else:
        data = {
            "hub": "HuggingFaceTB/smoltalk",
            "subset": "all",
            "split": "train",
            "take": 100_000,
            "license": "apache-2.0",
        }
        training["learning_rate"] = 5e-4
        training["per_device_train_batch_size"] = 8
        training["gradient_accumulation_steps"] = 2
        training["packing"] = True
        rank = 32

    lora = {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear"}
    return {"data": [data], "lora": lora, "training": training}


def _choose_sample_prompts(goal: Goal, is_small: bool) -> list[str]:
    if goal.corpus:
        return ["The"]
    if is_small:
        return ["The function returns", "def __init__(self"]
    return ["The capital of France is"]


def _choose_evaluation_prompts(use: str, is_small: bool) -> list[str]:
    if is_small:
        return ["What is the module `json` for?"] if use == "chat" else ["The function returns"]
    return ["What is the capital of France?"] if use == "chat" else ["The capital of France is"]


def _format_lines(tree: dict[str, Any], reasons: dict[str, str], prefix: str) -> Iterator[str]:
    """Yield the lines of a (sub)tree as YAML. `prefix` is the path of the subtree with a dot at its end."""
    indent = "  " * prefix.count(".")
    for key, value in tree.items():
        path = f"{prefix}{key}"
        is_section = isinstance(value, dict)
        is_list_of_sections = isinstance(value, list) and value and isinstance(value[0], dict)

        if is_section and not prefix:
            yield ""
        if path in reasons:
            yield f"{indent}# {reasons[path]}"

        if is_section and path not in reasons:
            yield f"{indent}{key}:"
            yield from _format_lines(value, reasons, f"{path}.")
        elif is_list_of_sections:
            yield f"{indent}{key}:"
            for item in value:
                yield f"{indent}  - {_format_inline(item)}"
        else:
            yield f"{indent}{key}: {_format_inline(value)}"


def _format_inline(value: Any) -> str:
    """Format a value on one line of YAML, floats as people write them."""
    if isinstance(value, float):
        return f"{value:g}"
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    return text.strip().removesuffix("\n...")

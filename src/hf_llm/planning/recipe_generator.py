"""A goal (`params: 125M`, chat, 24 hours on this machine) as a whole recipe with the reason of every value."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_llm.core.errors import UserError
from hf_llm.pipeline.sizing import TOKENS_PER_PARAMETER, apply_sizing, parse_quantity, shape_of, short

SMALL = 20e6  # parameters up to which the embedded documentation is enough to learn from
BYTES_PER_TOKEN = 4  # of English text, about; the vocabulary decides
MOST_EPOCHS = 4  # up to here old text teaches nearly as much as new, https://arxiv.org/abs/2305.16264
FINEWEB_EDU = ((1e10, "sample-10BT"), (1e11, "sample-100BT"), (3.5e11, "sample-350BT"))  # GPT-2 tokens, subset
TOKENS_PER_ROW = 1000  # of FineWeb-Edu, rounded: 9.67M rows of sample-10BT hold 9.95B GPT-2 tokens (its data card)


@dataclass(frozen=True)
class Goal:
    """What somebody wants: one dial, or `params`, `depth` or `flops` together with hours; for chat or as a base."""

    dial: str
    parse_quantity: str
    hours: float | None
    machine: str | float | None
    use: str  # base, chat
    corpus: Path | None = None


def write_recipe(goal: Goal, path: Path) -> str:
    """Write the recipe to `path` and return it. Raises UserError where there is a file already."""
    if path.exists():
        raise UserError(f"{path} is there already and is never overwritten; give --recipe another name")
    text = recipe_text(goal, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
    return text


def recipe_text(goal: Goal, path: Path) -> str:
    """The recipe as YAML, the first line the command that runs it, each derived value below its reason."""
    name = re.sub(r"[^\w.-]+", "-", path.stem).strip("-.") or "model"
    start = {"name": name, "seed": 42, goal.dial: goal.amount}
    if goal.machine is not None:
        start["machine"] = goal.machine
    tree, reasons = apply_sizing(start, None if goal.dial == "hours" else goal.hours)
    step, training = tree["pretrain"]["tokens_per_step"], tree["pretrain"]["training"]
    tokens, parameters = step * training["max_steps"], shape_of(tree).parameters
    tree = {"name": name, "seed": 42, "corpus": _corpus(goal, parameters, tokens, reasons), **_sections(tree)}
    tree["pretrain"]["samples"] = {"prompts": _prompts(goal, parameters)}
    if goal.use == "chat":
        tree["sft"] = _sft(parameters, reasons)
    tree["evaluate"] = {"tokens": tree["pretrain"]["evaluation_tokens"], "prompts": _questions(goal.use, parameters)}
    head = [f"# python -m hf_llm.run {path}", *_story(goal, parameters, tokens)]
    return "\n".join([*head, *_lines(tree, reasons, "")]) + "\n"


def _sections(tree: dict[str, Any]) -> dict[str, Any]:
    """The sections that the dial filled, in a reader's order."""
    pretrain = tree["pretrain"]
    return {
        "tokenizer": tree["tokenizer"],
        "model": tree["model"],
        "pretrain": {**{key: value for key, value in pretrain.items() if key != "training"}, "samples": {},
                     "training": pretrain["training"]},
    }  # fmt: skip


def _story(goal: Goal, parameters: int, tokens: float) -> Iterator[str]:
    """The comment at the head: what this trains, on how much, and what of the goal does not go together."""
    wish = "" if goal.dial == "hours" else f"{goal.dial} {goal.amount}"
    time = f"{goal.hours:g} hours on {goal.machine}" if goal.hours else ""
    yield f"# {short(parameters)} parameters on {short(tokens)} tokens, for {' and '.join(filter(None, (wish, time)))}."
    each = tokens / parameters
    if goal.hours and goal.dial != "hours" and each < TOKENS_PER_PARAMETER / 2:
        better = parameters * (each / TOKENS_PER_PARAMETER) ** 0.5
        yield f"# That is {each:.2g} tokens for each parameter where {TOKENS_PER_PARAMETER} are best: in these hours a"
        yield f"# model of about {short(better)} would be better. Give --params {short(better)}, or more --hours."
    if goal.hours:
        yield "# The hours are those of pretraining; corpus, tokenizer and chats come on top."


def _corpus(goal: Goal, parameters: int, tokens: float, reasons: dict[str, str]) -> dict[str, Any]:
    key = "corpus.sources"
    if goal.corpus:
        there = _bytes(goal.corpus) / BYTES_PER_TOKEN
        reasons[key] = f"about {short(there)} tokens, seen {tokens / there:.2g} times"
        if tokens / there > MOST_EPOCHS:
            reasons[key] += (
                f"; up to {MOST_EPOCHS} times is nearly as good as new text, https://arxiv.org/abs/2305.16264"
            )
        return {"sources": [{"path": str(goal.corpus), "license": "unknown"}]}
    if parameters <= SMALL:
        reasons[key] = "the documentation that came with Python: no network, and enough for a model of this size"
        installed = ["language_reference", "standard_library", "packages"]
        return {"sources": [{"installed": installed, "license": "psf-2.0"}]}
    subset = next((name for size, name in FINEWEB_EDU if tokens < 0.9 * size), FINEWEB_EDU[-1][1])
    take = round(tokens / TOKENS_PER_ROW * 1.2 / 10_000 + 1) * 10_000
    reasons[key] = (
        f"educational web text; rows for {short(tokens)} tokens and a fifth more, at {TOKENS_PER_ROW:,} a row"
    )
    source = {"hub": "HuggingFaceFW/fineweb-edu", "subset": subset, "split": "train", "take": take, "license": "odc-by"}
    return {"sources": [source]}


def _bytes(path: Path) -> int:
    if not path.exists():
        raise UserError(f"--corpus {path}: there is no such file or folder")
    size = sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
    if not size:
        raise UserError(f"--corpus {path}: holds nothing")
    return size


def _sft(parameters: int, reasons: dict[str, str]) -> dict[str, Any]:
    """Chats to learn from. The settings are those of the recipes that come with hf_llm, for small and large models."""
    small = parameters <= SMALL
    reasons["sft.data"] = "questions on the same documentation" if small else "chats of many kinds"
    reasons["sft.lora"] = "adapters on all linear layers; leave this out to train every weight"
    data = {"installed": "docs", "take": 3000, "license": "psf-2.0"}
    training = {"num_train_epochs": 1, "lr_scheduler_type": "cosine", "warmup_steps": 0.03}
    if small:
        training |= {"learning_rate": 2e-3, "per_device_train_batch_size": 16}
    else:
        hub = {"hub": "HuggingFaceTB/smoltalk", "subset": "all", "split": "train"}
        data = {**hub, "take": 100_000, "license": "apache-2.0"}
        training |= {"learning_rate": 5e-4, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
        training["packing"] = True
    rank = 16 if small else 32
    lora = {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear"}
    return {"data": [data], "lora": lora, "training": training}


def _prompts(goal: Goal, parameters: int) -> list[str]:
    if goal.corpus:
        return ["The"]
    return ["The function returns", "def __init__(self"] if parameters <= SMALL else ["The capital of France is"]


def _questions(use: str, parameters: int) -> list[str]:
    if parameters <= SMALL:
        return ["What is the module `json` for?"] if use == "chat" else ["The function returns"]
    return ["What is the capital of France?"] if use == "chat" else ["The capital of France is"]


def _lines(tree: dict[str, Any], reasons: dict[str, str], where: str) -> Iterator[str]:
    indent = "  " * where.count(".")
    for key, value in tree.items():
        path = f"{where}{key}"
        if not where and isinstance(value, dict):
            yield ""
        if path in reasons:
            yield f"{indent}# {reasons[path]}"
        if isinstance(value, dict) and path not in reasons:
            yield f"{indent}{key}:"
            yield from _lines(value, reasons, f"{path}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield f"{indent}{key}:"
            yield from (f"{indent}  - {_inline(item)}" for item in value)
        else:
            yield f"{indent}{key}: {_inline(value)}"


def _inline(value: Any) -> str:
    """A value on one line of YAML, floats as people write them."""
    if isinstance(value, float):
        return f"{value:g}"
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False, allow_unicode=True)
    return text.strip().removesuffix("\n...")


def goal_of(dials: dict[str, str | None], machine: str | float | None, use: str, corpus: Path | None) -> Goal:
    """The goal of the command line's `params`, `depth`, `flops` and `hours`. Raises UserError where there is none."""
    given = {key: value for key, value in dials.items() if value is not None}
    sizes = [key for key in given if key != "hours"]
    if len(sizes) > 1:
        raise UserError(f"--{sizes[0]} and --{sizes[1]} each fix the model's size; leave one out")
    if not given:
        raise UserError(
            "--recipe needs a goal: --params 125M, --depth 12, --flops 1e18 or --hours 24 (or size and hours)"
        )
    dial = sizes[0] if sizes else "hours"
    hours = parse_quantity(given["hours"], "--hours") if "hours" in given else None
    if dial == "flops" and hours:
        raise UserError("--flops and --hours each fix the arithmetic to spend; leave one out")
    return Goal(dial, given[dial], hours, machine, use, corpus)

"""The variants of an experiment: what `--vary` says as recipes of their own, checked before any of them is trained."""

import importlib
import re
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedConfig

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import digest_of
from hf_llm.core.recipe import build_recipe, parse_yaml, plain, set_key
from hf_llm.model.load import context_of
from hf_llm.pipeline.run import settings_of
from hf_llm.pipeline.sizing import SIZING_KEYS
from hf_llm.pipeline.stages import DATA, RECIPE_KEYS, STAGES
from hf_llm.planning.memory_estimate import pretraining_config
from hf_llm.training.arguments import batch

BASELINE = "baseline"
PREPARED = DATA  # what a pretraining is made of
PRETRAINING = (*PREPARED, "base")
SECTIONS = ("name", "seed", "price_per_hour", "corpus", "tokenizer", "model", "pretrain")
LONGEST_NAME = 60  # of a folder
NOT_TAKEN = re.compile(r"push_to_hub$|hub_|seed$|data_seed$")  # of the training section: each run has its own seed


@dataclass
class Variant:
    """One recipe of an experiment. `fitted` are the sizes that were chosen so that it is comparable to the baseline."""

    name: str
    changes: dict[str, Any]  # from the recipe, by full key; none for the baseline
    tree: dict[str, Any]
    fitted: dict[str, Any] = field(default_factory=dict)


@dataclass
class Prospective:
    """A variant's pretraining before it is made: its sections, those of its data with all defaults as plain values, its
    model's configuration and its context in tokens."""

    data: dict[str, Any]
    section: Any
    model: dict[str, Any]
    config: PreTrainedConfig
    context: int


def parse_factor(text: str) -> tuple[str, list[Any]]:
    """The key and the values of one `--vary key=value,value`. Values are YAML, or all of it is one YAML list.

    Raises UserError.
    """
    key, equals, values = text.partition("=")
    if not re.fullmatch(r"\w+(\.\w+)*", key) or not equals or not values.strip():
        raise UserError(f"--vary {text}: write --vary section.key=value,value")
    if key.split(".")[0] not in SECTIONS[3:]:
        sizes = "; sizes by the dial are for hf_llm.scaling" if key in SIZING_KEYS else ""
        raise UserError(f"--vary {key}: what can be varied is below {', '.join(SECTIONS[3:])}{sizes}")
    try:
        found = parse_yaml(values)
    except yaml.YAMLError:
        found = None
    if isinstance(found, list):
        return key, found
    try:
        return key, parse_yaml(f"[{values}]")
    except yaml.YAMLError as error:
        raise UserError(f"--vary {key}: {values!r} is no readable list of values: {error}") from None


def pretraining_tree(tree: dict[str, Any]) -> dict[str, Any]:
    """Of a recipe's tree, its dial turned, what a pretraining reads; nothing is uploaded."""
    kept = {key: deepcopy(tree[key]) for key in SECTIONS if tree.get(key) is not None}
    for key in ("model", "tokenizer", "pretrain"):
        kept.setdefault(key, {})
    training = kept["pretrain"].get("training") or {}
    kept["pretrain"]["training"] = {k: v for k, v in training.items() if not NOT_TAKEN.match(k)}
    return kept


def has_data(tree: dict[str, Any]) -> bool:
    """Whether the recipe names folders of tokens and tokenizer, so that none are made."""
    return bool(tree["pretrain"].get("tokens") and tree["pretrain"].get("tokenizer"))


def data_name(tree: dict[str, Any], own: dict[str, Any], into: str) -> str:
    """The run that holds a variant's corpus, tokenizer and tokens: the recipe's `own`, or one for those like it."""
    settings = [settings_of(folder, tree) for folder in PREPARED]
    if settings == [settings_of(folder, own) for folder in PREPARED]:
        return own["name"]
    return f"{own['name']}/{into}/data/{digest_of(settings)[:8]}"


def combinations(tree: dict[str, Any], factors: dict[str, list[Any]], into: str) -> list[Variant]:
    """The baseline, which is the recipe as it is, and every combination of the factors' values that differs from it.

    A value that is the recipe's own, or its default, is no change. Raises UserError where a value does not fit, with
    every problem of every variant.
    """
    made_here = [key for key in factors if key.split(".")[0] in ("corpus", "tokenizer")]
    if made_here and has_data(tree):
        raise UserError(f"--vary {made_here[0]}: nothing reads it, for pretrain.tokens names a folder that is there")
    own, problems = signature(tree, BASELINE), []
    found = {own: Variant(BASELINE, {}, tree)}

    def variant(changes: dict[str, Any]) -> tuple[str, Variant]:
        changed = with_changes(tree, changes)
        changed["name"] = data_name(changed, tree, into)
        return signature(changed, name_of(changes)), Variant(name_of(changes), changes, changed)

    def is_change(key: str, value: Any) -> bool:
        try:
            return variant({key: value})[0] != own
        except UserError:
            return True  # one alone may not fit without another

    for values in product(*factors.values()):
        changes = {k: v for k, v in zip(factors, values, strict=True) if is_change(k, v)}
        try:
            digest, made = variant(changes)
            found.setdefault(digest, made)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    if len(found) == 1:
        raise UserError(f"--vary {' '.join(factors)}: nothing there differs from the recipe")
    return list(found.values())


def with_changes(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A copy of a recipe's tree with some keys set."""
    changed = deepcopy(tree)
    for key, value in changes.items():
        set_key(changed, key, value)
    return changed


def name_of(changes: dict[str, Any]) -> str:
    """A folder's name that tells the changes apart: `positions-alibi`, `learning_rate-0.002_seed-1`."""
    if not changes:
        return BASELINE
    parts = [f"{key.rpartition('.')[2]}-{_slug(value)}" for key, value in changes.items()]
    name = "_".join(parts)
    exact = all(isinstance(value, str | int | float | None) for value in changes.values())
    if exact and len(name) <= LONGEST_NAME and name == re.sub(r"[^\w.+-]", "", name):
        return name
    return f"{name[:LONGEST_NAME].rstrip('-_.')}-{digest_of(changes)[:6]}"


def _slug(value: Any) -> str:
    return re.sub(r"[^\w.]+", "-", str(value)).strip("-")


def checked(tree: dict[str, Any], where: str) -> Prospective:
    """What a pretraining by this recipe will be; every stage before it accepts the recipe too.

    Raises UserError, `where` before the problem.
    """
    problems, recipes = [], {}
    for folder in PRETRAINING:
        try:
            recipes[folder] = build_recipe(
                importlib.import_module(STAGES[folder].module).Recipe, tree, where, RECIPE_KEYS
            )
        except UserError as error:
            problems += str(error).splitlines()[1:]
    if problems:
        raise UserError("\n".join([f"{where}:", *dict.fromkeys(problems)]))
    section = recipes["base"].pretrain
    try:
        tokenizer = Path("runs") / str(tree["name"]) / "tokenizer"
        config = pretraining_config(recipes["base"].model, section, tree, tokenizer)
        context = context_of(config, section.context)
        batch(section.tokens_per_step, context, section.training, "pretrain")
    except UserError as error:
        raise UserError(f"{where}:\n  {error}") from None
    data = {key: value for folder in PREPARED for key, value in plain(recipes[folder]).items() if key != "name"}
    return Prospective(data, section, recipes["base"].model, config, context)


def signature(tree: dict[str, Any], where: str) -> str:
    """A digest of what a recipe trains: equal for recipes that differ in nothing but what they write out."""
    prospective = checked(tree, where)
    return digest_of([prospective.data, plain(prospective.section), prospective.config.to_dict()])

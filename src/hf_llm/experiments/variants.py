"""Turn `--vary` options into the variants of an experiment: recipes that are all checked before the first training."""

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
from hf_llm.core.recipe import build_recipe, describe_yaml_error, parse_yaml, set_key, to_plain
from hf_llm.model.load import resolve_context
from hf_llm.pipeline.run import settings_of
from hf_llm.pipeline.sizing import SIZING_KEYS
from hf_llm.pipeline.stages import DATA, RECIPE_KEYS, STAGES
from hf_llm.planning.memory_estimate import build_pretraining_config
from hf_llm.training.arguments import split_batch

BASELINE = "baseline"
MAX_NAME_CHARS = 60  # the longest name of a variant's folder

PRETRAINING = (*DATA, "base")  # the folders of a pretrained model and its data

# The recipe sections that `--vary` can change, in the order of the stages: corpus, ..., pretrain.
_STAGE_KEYS = [key for folder in PRETRAINING for key in STAGES[folder].sections if key != "seed"]
VARIABLE_SECTIONS = tuple(dict.fromkeys(key.split(".")[0] for key in _STAGE_KEYS))
RECIPE_KEYS_OF_PRETRAINING = ("name", "seed", "price_per_hour", *VARIABLE_SECTIONS)
# Keys of `pretrain.training` that variants do not inherit: each training has its own seed, and none is uploaded.
DROPPED_TRAINING_KEYS = re.compile(r"push_to_hub$|hub_|seed$|data_seed$")


@dataclass
class Variant:
    """One recipe of an experiment."""

    name: str
    changes: dict[str, Any]
    """Full key -> the value that differs from the recipe; empty for the baseline."""
    tree: dict[str, Any]
    """The recipe as nested dictionaries; its name is that of the run that holds the data."""
    fitted: dict[str, Any] = field(default_factory=dict)
    """Full key -> the size that was chosen so that the variant is comparable to the baseline."""


@dataclass
class PlannedPretraining:
    """A variant's pretraining before it is run."""

    data: dict[str, Any]
    """The sections that determine the data, defaults filled in, as plain values."""
    section: Any
    """The `pretrain` section as the stage reads it."""
    model: dict[str, Any]
    """The `model` section."""
    config: PreTrainedConfig
    context: int
    """Tokens of a training window."""


def parse_factor(text: str) -> tuple[str, list[Any]]:
    """Parse one `--vary key=value,value` into its key and values. Values are YAML, or all of it is one YAML list.

    Raises UserError.
    """
    key, equals_sign, values_text = text.partition("=")
    if not re.fullmatch(r"\w+(\.\w+)*", key) or not equals_sign or not values_text.strip():
        raise UserError(f"--vary {text}: write --vary section.key=value,value")
    if key.split(".")[0] not in VARIABLE_SECTIONS:
        hint = "; hf_llm.scaling varies the size of a sized recipe" if key in SIZING_KEYS else ""
        raise UserError(f"--vary {key}: only keys below {', '.join(VARIABLE_SECTIONS)} can vary{hint}")

    try:
        value = parse_yaml(values_text)
    except yaml.YAMLError:
        value = None  # such as `[a],[b]`, which is YAML only within brackets
    if isinstance(value, list):
        return key, value
    try:
        return key, parse_yaml(f"[{values_text}]")
    except yaml.YAMLError as error:
        reason = describe_yaml_error(error, values_text)
        raise UserError(f"--vary {key}: cannot parse {values_text!r} as a YAML list: {reason}") from None


def select_pretraining_keys(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a recipe (with its sizing applied) that pretraining reads, without DROPPED_TRAINING_KEYS."""
    selected = {key: deepcopy(tree[key]) for key in RECIPE_KEYS_OF_PRETRAINING if tree.get(key) is not None}
    for section in ("model", "tokenizer", "pretrain"):
        selected.setdefault(section, {})

    training = selected["pretrain"].get("training") or {}
    kept = {key: value for key, value in training.items() if not DROPPED_TRAINING_KEYS.match(key)}
    selected["pretrain"]["training"] = kept
    return selected


def has_data(tree: dict[str, Any]) -> bool:
    """Whether the recipe names an existing folder of tokens, so that none has to be made."""
    return bool(tree["pretrain"].get("tokens"))


def name_data_run(tree: dict[str, Any], original: dict[str, Any], into: str) -> str:
    """Return the name of the run that holds a variant's corpus, tokenizer and tokens.

    It is the run of the `original` recipe if the variant has the same data; otherwise a run below `into` that all
    variants with these data share.
    """
    settings = [settings_of(folder, tree) for folder in DATA]
    original_settings = [settings_of(folder, original) for folder in DATA]
    if settings == original_settings:
        return original["name"]
    return f"{original['name']}/{into}/data/{digest_of(settings)[:8]}"


def combine_factors(tree: dict[str, Any], factors: dict[str, list[Any]], into: str) -> list[Variant]:
    """Return the baseline, which is the unchanged recipe, and a variant for every combination of values.

    A value that equals the recipe's own, or its default, is not a change; combinations without any are dropped. Raises
    UserError for invalid values, with the problems of all variants.
    """
    data_keys = [key for key in factors if key.split(".")[0] in ("corpus", "tokenizer")]
    if data_keys and has_data(tree):
        raise UserError(f"--vary {data_keys[0]}: has no effect, since pretrain.tokens names an existing folder")

    def build_variant(changes: dict[str, Any]) -> tuple[str, Variant]:
        """Return the variant with these changes, after a digest of what it trains."""
        changed = set_keys(tree, changes)
        changed["name"] = name_data_run(changed, tree, into)
        name = variant_name(changes)
        return digest_training(changed, name), Variant(name, changes, changed)

    baseline_digest = digest_training(tree, BASELINE)

    def is_change(key: str, value: Any) -> bool:
        try:
            digest, _ = build_variant({key: value})
        except UserError:
            return True  # a value may be valid only together with another
        return digest != baseline_digest

    # Keyed by digest, since combinations that train the same are one variant.
    variants = {baseline_digest: Variant(BASELINE, {}, tree)}
    problems = []
    for values in product(*factors.values()):
        changes = {key: value for key, value in zip(factors, values, strict=True) if is_change(key, value)}
        try:
            digest, variant = build_variant(changes)
            variants.setdefault(digest, variant)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    if len(variants) == 1:
        raise UserError(f"--vary {' '.join(factors)}: no value differs from the recipe")
    return list(variants.values())


def set_keys(tree: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a recipe with some keys set."""
    changed = deepcopy(tree)
    for key, value in changes.items():
        set_key(changed, key, value)
    return changed


def variant_name(changes: dict[str, Any]) -> str:
    """Return a unique name for a folder: `positions-alibi`, `learning_rate-0.002_seed-1`.

    Where the name does not show every value exactly, a digest of the changes is added.
    """
    if not changes:
        return BASELINE
    parts = []
    for key, value in changes.items():
        last_part = key.rpartition(".")[2]
        slug = re.sub(r"[^\w.]+", "-", str(value)).strip("-")
        parts.append(f"{last_part}-{slug}")
    name = "_".join(parts)

    shows_all_values = all(isinstance(value, str | int | float | None) for value in changes.values())
    is_safe = name == re.sub(r"[^\w.+-]", "", name)
    if shows_all_values and is_safe and len(name) <= MAX_NAME_CHARS:
        return name
    return f"{name[:MAX_NAME_CHARS].rstrip('-_.')}-{digest_of(changes)[:6]}"


def plan_pretraining(tree: dict[str, Any], where: str) -> PlannedPretraining:
    """Plan the pretraining by this recipe, after a check that every stage up to it accepts the recipe.

    Raises UserError, which names `where` before the problems.
    """
    recipes = {}
    problems = []
    data_folders = () if has_data(tree) else DATA
    for folder in (*data_folders, "base"):
        recipe_class = importlib.import_module(STAGES[folder].module).Recipe
        try:
            recipes[folder] = build_recipe(recipe_class, tree, where, RECIPE_KEYS)
        except UserError as error:
            _, *stage_problems = str(error).splitlines()  # the first line names the recipe
            problems += stage_problems
    if problems:
        raise UserError("\n".join([f"{where}:", *dict.fromkeys(problems)]))

    model = recipes["base"].model
    section = recipes["base"].pretrain
    tokenizer = Path("runs") / str(tree["name"]) / "tokenizer"
    try:
        config = build_pretraining_config(model, section, tree, tokenizer)
        context = resolve_context(config, section.context)
        split_batch(section.tokens_per_step, context, section.training, "pretrain")
    except UserError as error:
        raise UserError(f"{where}:\n  {error}") from None

    data = {}
    for folder in data_folders:
        data |= {key: value for key, value in to_plain(recipes[folder]).items() if key != "name"}
    return PlannedPretraining(data, section, model, config, context)


def digest_training(tree: dict[str, Any], where: str) -> str:
    """Return a digest of what a recipe trains: equal for recipes that differ only in defaults they write out."""
    pretraining = plan_pretraining(tree, where)
    return digest_of([pretraining.data, to_plain(pretraining.section), pretraining.config.to_dict()])

"""The shipped keys of the libraries' settings classes, made from the classes themselves: part of `make reference`."""

import dataclasses
import importlib
import json
import sys
import typing
from collections.abc import Iterator
from typing import Any

from hf_llm.core.recipe import Settings
from hf_llm.core.settings.dataclass_fields import field_types
from hf_llm.core.settings.library_settings import (
    SHIPPED_FILE,
    LibraryClass,
    describe_class,
    import_class,
    installed_versions,
)
from hf_llm.pipeline.model_types import OWN_MODEL_TYPE
from hf_llm.pipeline.stages import STAGES

# Those that our recipes and docs name. For another one transformers is imported.
MODEL_TYPES = (OWN_MODEL_TYPE, "albert", "bert", "gpt2", "llama", "mamba", "modernbert", "qwen3", "t5")


def list_class_names() -> list[str]:
    """Every class that `Settings[...]` names in the recipe of a stage, in the order of the stages."""
    names: dict[str, None] = {"transformers.TrainingArguments": None}
    for stage in STAGES.values():
        recipe_class = getattr(importlib.import_module(stage.module), "Recipe", None)
        for target in _find_targets(recipe_class) if recipe_class else ():
            if isinstance(target, str):
                names[target] = None
            else:
                names |= dict.fromkeys(target({"model_type": model_type}) for model_type in MODEL_TYPES)
    return list(names)


def _find_targets(annotation: Any) -> Iterator[Any]:
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        for inner in field_types(annotation).values():
            yield from _find_targets(inner)
    elif typing.get_origin(annotation) is Settings:
        yield from typing.get_args(annotation)
    else:
        for inner in typing.get_args(annotation):
            yield from _find_targets(inner)


def describe_live_classes() -> dict[str, LibraryClass]:
    """Every class by its name, as the installed libraries have it."""
    return {name: describe_class(import_class(name), name) for name in list_class_names()}


def list_live_model_types() -> list[str]:
    """Every model_type that a recipe may name."""
    from transformers import CONFIG_MAPPING

    import hf_llm.model  # noqa: F401 - adds ours

    return sorted(CONFIG_MAPPING.keys())


def render_shipped_settings() -> str:
    """The shipped file as JSON, with a line for each key."""
    lines = ["{", f'"versions": {json.dumps(installed_versions())},', '"classes": {']
    classes = describe_live_classes()
    for number, (name, described) in enumerate(classes.items()):
        lines.append(f'{json.dumps(name)}: {{"files": {json.dumps(described.files)}, "keys": {{')
        lines += _separate(f" {json.dumps(key)}: {json.dumps(encoded)}" for key, encoded in described.keys.items())
        lines.append("}}" if number == len(classes) - 1 else "}},")
    lines += ["},", f'"model_types": {json.dumps(list_live_model_types())}', "}"]
    return "\n".join(lines) + "\n"


def _separate(lines: Iterator[str]) -> list[str]:
    """Put a comma after every line but the last."""
    *first, last = lines
    return [*(f"{line}," for line in first), last]


def write_shipped_settings() -> None:
    SHIPPED_FILE.write_text(render_shipped_settings(), encoding="utf-8")


if __name__ == "__main__":
    sys.stdout.write(render_shipped_settings())

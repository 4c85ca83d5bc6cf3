"""What `make reference` makes: docs/reference.md, the page of every recipe key, from the docstrings under the fields,
and the keys of the libraries' settings classes, from the classes (`tests/shipped_settings.py`)."""

import importlib

from hf_llm.core.recipe_help import KeyDoc, describe_keys
from hf_llm.pipeline.stages import STAGES
from tests.shipped_settings import write_shipped_settings
from tests.tiny_recipe import ROOT

REPEATED = ("corpus.sources[].rules.",)  # the same keys as corpus.rules
PAGE = ROOT / "docs" / "reference.md"
HEAD = """# Every key of a recipe

Made from the docstrings under the fields by `make reference`; a test keeps it up to date.
`python -m hf_llm.<stage> --help` prints the same for one stage. Any key can be overridden on the command
line by its full path: `--section.key=value`.

At the top of a recipe also stand the sizing keys `depth`, `params`, `flops`, `hours` and `machine`:
[sizing](sizing.md).
"""


def collect_keys() -> dict[str, KeyDoc]:
    """Every key that any stage reads, by its path, in the order of the stages."""
    keys: dict[str, KeyDoc] = {}
    for stage in STAGES.values():
        recipe_class = importlib.import_module(stage.module).Recipe
        for entry in describe_keys(recipe_class):
            if not entry.key.startswith(REPEATED):
                keys.setdefault(entry.key, entry)
    return keys


def render() -> str:
    """The page: one table for the top-level keys, then one for each section."""
    sections: dict[str, list[KeyDoc]] = {}
    for key, entry in collect_keys().items():
        section = key.split(".")[0].removesuffix("[]")
        sections.setdefault(section, []).append(entry)

    top_level = [entries[0] for entries in sections.values() if len(entries) == 1]
    parts = [HEAD, "## Top level\n", _table(top_level)]
    for section, entries in sections.items():
        if len(entries) > 1:
            parts += [f"## {section}\n", entries[0].text + "\n" if entries[0].text else "", _table(entries[1:])]
    return "\n".join(part for part in parts if part).rstrip() + "\n"


def _table(entries: list[KeyDoc]) -> str:
    lines = ["| key | type | default | |", "|--|--|--|--|"]
    for entry in entries:
        cells = [f"`{entry.key}`", _code(entry.kind), _code(entry.default), entry.text]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    is_words = not text or text in ("section", "list of sections", "(required)") or text.startswith("keys of")
    return text if is_words else f"`{text}`"


if __name__ == "__main__":
    write_shipped_settings()
    PAGE.write_text(render(), encoding="utf-8")

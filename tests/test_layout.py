"""The arrows between the rooms: who may import whom (docs/layout.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "hf_llm"
CORE = {"errors", "recipe", "manifest", "lifecycle"}
ROOMS = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
LEAVES = {"data", "tokenization", "model"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Every module a file imports anywhere, relative ones written out."""
    found = set()
    package = ["hf_llm", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
            found.add(start if node.level else node.module)
    return found


def neighbours(path: Path) -> set[str]:
    """The parts of hf_llm (a room, or a module at the top) that a file imports."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("hf_llm.")}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_arrows_point_down(path):
    place = path.relative_to(PACKAGE).parts
    room = place[0] if len(place) > 1 else None
    if room in LEAVES:
        allowed = {room, "errors"}
    elif place[0] == "errors.py":
        allowed = set()
    else:
        allowed = ROOMS | CORE
    assert neighbours(path) <= allowed


def travelling() -> list[str]:
    """modeling_hf_llm.py and what it imports, and that imports: save_pretrained copies these beside the weights."""
    found, new = [], ["modeling_hf_llm.py"]
    while new:
        found += new
        modules = {module.rsplit(".", 1)[-1] for name in new for module in imports(PACKAGE / "model" / name)}
        new = sorted(f"{m}.py" for m in modules if (PACKAGE / "model" / f"{m}.py").exists() and f"{m}.py" not in found)
    return found


@pytest.mark.parametrize("name", travelling())
def test_what_travels_with_the_weights_needs_only_torch_and_transformers(name):
    standard = set(sys.stdlib_module_names)
    roots = {module.split(".")[0] for module in imports(PACKAGE / "model" / name)} - standard
    assert roots <= {"torch", "transformers", "huggingface_hub", "hf_llm"}
    assert neighbours(PACKAGE / "model" / name) <= {"model"}


def test_importing_the_package_is_instant():
    code = "import sys, hf_llm; print([m for m in ('torch', 'transformers', 'datasets', 'trl') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_no_module_is_a_drawer_for_odds_and_ends():
    assert not [path for path in FILES if path.stem in ("utils", "common", "helpers", "misc")]

"""The rooms of the package and the order they import in (docs/layout.md)."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "src" / "hf_llm"
FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in FILES}

# A room imports only from itself and from rooms before it in this list.
ROOMS = [
    "core", "hardware", "pipeline", "tokenization", "data.files", "data.tokens", "data.corpus", "data.chat", "model",
    "inference", "evaluation", "reporting", "parallel", "monitoring", "training", "posttraining", "planning",
    "preflight", "experiments", "human_eval",
]  # fmt: skip


def room_of(module: str) -> str | None:
    """The room of a module, None for a stage: `hf_llm.data.corpus.build` stands in `data.corpus`."""
    _, *folders, _ = module.split(".")
    return ".".join(folders[: 2 if folders[0] == "data" else 1]) if folders else None


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


class TypeImportRemover(ast.NodeTransformer):
    """Removes `if TYPE_CHECKING:`, whose imports never run."""

    def visit_If(self, node: ast.If) -> ast.AST | None:
        is_for_types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        return None if is_for_types else self.generic_visit(node)


def imports(path: Path, with_types: bool = True) -> set[str]:
    """Every module a file imports anywhere, within functions too, relative ones written out."""
    imported = set()
    package = ["hf_llm", *path.relative_to(PACKAGE).parts[:-1]]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if not with_types:
        tree = TypeImportRemover().visit(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
            base = start if node.level else node.module
            for alias in node.names:
                imported.add(f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base)
    return imported


def imported_rooms(path: Path) -> set[str | None]:
    """The rooms a file imports from; None among them where it imports a stage."""
    return {room_of(module) for module in imports(path) & MODULES}


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if room_of(name_of(p)) and p.stem != "__init__"],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_a_room_imports_only_from_rooms_before_it(path):
    room = room_of(name_of(path))
    assert room in ROOMS
    later = {other for other in imported_rooms(path) if other is None or ROOMS.index(other) > ROOMS.index(room)}
    assert later == set()


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("*.py")), ids=lambda p: p.name)
def test_a_stage_imports_no_other_stage(path):
    assert None not in imported_rooms(path)


def assert_no_circle(graph: dict[str, set[str]]) -> None:
    """Follow every arrow of a graph; an arrow of a node to itself does not count."""
    done: set[str] = set()

    def visit(node: str, trail: tuple[str, ...]) -> None:
        assert node not in trail, " -> ".join((*trail[trail.index(node) :], node))
        if node in done:
            return
        for other in sorted(graph[node] - {node}):
            visit(other, (*trail, node))
        done.add(node)

    for node in sorted(graph):
        visit(node, ())


def test_no_file_imports_itself_through_others():
    assert_no_circle({name_of(path): imports(path) & MODULES for path in FILES})


def test_no_folder_imports_itself_through_others():
    graph: dict[str, set[str]] = {name_of(path).rpartition(".")[0]: set() for path in FILES}
    for path in FILES:
        imported = imports(path, with_types=False) & MODULES
        graph[name_of(path).rpartition(".")[0]] |= {module.rpartition(".")[0] for module in imported}
    assert_no_circle(graph)


def test_a_folder_holds_about_twenty_files_at_most():
    folders = {path.parent for path in FILES} - {PACKAGE}
    assert not {str(folder): n for folder in folders if (n := len(list(folder.glob("*.py")))) > 22}


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
    assert imported_rooms(PACKAGE / "model" / name) <= {"model"}


def loaded_modules(module: str) -> set[str]:
    """The modules that are loaded once `module` is imported in a process of its own."""
    code = f"import sys, {module}; print('MODULES', *sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.rpartition("MODULES ")[2].split())


def test_importing_the_package_is_instant():
    assert not loaded_modules("hf_llm") & {"torch", "transformers", "datasets", "trl"}


def test_tuning_loads_nothing_that_filters_a_corpus():
    loaded = loaded_modules("hf_llm.sft")
    assert not loaded & {"datatrove", "ftfy", "fasttext"}
    assert not {module for module in loaded if module.startswith("hf_llm.data.corpus.filters")}


def test_the_settings_of_a_corpus_load_without_what_makes_one():
    loaded = loaded_modules("hf_llm.data.corpus.config")
    assert not loaded & {"datatrove", "ftfy", "fasttext", "phonenumbers", "torch", "datasets", "pyarrow"}


def test_no_module_is_a_drawer_for_odds_and_ends():
    assert not [path for path in FILES if path.stem in ("utils", "common", "helpers", "misc")]

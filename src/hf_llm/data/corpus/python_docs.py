"""Documentation that every Python installation carries, read without importing what it documents.

`language_reference` is the text of `pydoc_data.topics`, `standard_library` the sources and docstrings of the standard
library, `packages` the docstrings of the installed packages (at most `PACKAGE_CHARS` of each, so that none dominates).
"""

import ast
import functools
import importlib.util
import inspect
import sysconfig
import warnings
from collections.abc import Iterator
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import xxhash

from hf_llm.core.errors import UserError

ITEMS = ("language_reference", "standard_library", "packages")
PACKAGE_CHARS = 500_000

# Tests, generated tables, copies of other packages: no documentation in them.
_LEFT_OUT = {
    "test", "tests", "testing", "idlelib", "lib2to3", "turtledemo", "encodings", "pydoc_data", "site-packages",
    "dist-packages", "_vendor", "vendor", "__pycache__", "benchmarks", "pip", "setuptools", "hf_llm",
}  # fmt: skip


class Entry(NamedTuple):
    """A documented module, class, function or method."""

    name: str  # dotted, from the package on: json.JSONDecoder.decode
    kind: str  # "module", "class" or "def"
    signature: str  # as in a call, `decode(self, s)`; empty for a module
    docstring: str  # without the source's indentation


class Text(NamedTuple):
    """A text of the documentation, its licence where the package states one, and what it documents."""

    text: str
    license: str | None
    metadata: dict


def file_groups(item: str, group_bytes: int) -> list[list[tuple[Path, str]]]:
    """The files of an item with their names, in groups of about `group_bytes`; a package is never divided."""
    if item == "language_reference":
        spec = importlib.util.find_spec("pydoc_data.topics")
        if spec is None or not spec.origin:
            raise UserError("this Python has no pydoc_data.topics; leave language_reference out of `installed`")
        return [[(Path(spec.origin), "pydoc_data/topics.py")]]
    root = Path(sysconfig.get_path("stdlib" if item == "standard_library" else "purelib"))
    files = [(file, file.relative_to(root).as_posix()) for file in root.rglob("*.py")]
    files = sorted((name, file) for file, name in files if _is_documentation(name))
    if not files:
        raise UserError(f"{root} holds no Python sources; leave {item} out of `installed`")
    groups, size = [[]], 0
    for _, together in groupby(files, key=lambda pair: pair[0].split("/")[0]):
        if size >= group_bytes:
            groups, size = [*groups, []], 0
        for name, file in together:
            groups[-1].append((file, name))
            size += file.stat().st_size
    return groups


def documents(item: str, files: tuple[tuple[str, str], ...]) -> Iterator[Text]:
    """The texts of some files of an item, as `file_groups` names them."""
    if item == "language_reference":
        for topic, text in topics().items():
            yield Text(text, None, {"topic": topic})
    elif item == "standard_library":
        for path, name in files:
            content = Path(path).read_bytes()
            source = _decoded(content)
            if source.strip():
                yield Text(source, None, {"file": name})
            docstrings = rendered(entries(content, module_name(name)))
            if docstrings:
                yield Text(docstrings, None, {"module": module_name(name)})
    else:
        for package, together in groupby(files, key=lambda pair: pair[1].split("/")[0]):
            yield from _package(package, list(together))


def topics() -> dict[str, str]:
    """The language reference: topic to text, in order of the topics' names."""
    from pydoc_data.topics import topics

    return dict(sorted(topics.items()))


def entries(source: bytes, module: str) -> list[Entry]:
    """Every docstring of a module's source, in the source's order. Source that does not parse has none."""
    try:
        with warnings.catch_warnings(record=True):  # the packages' own invalid escapes concern nobody here
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    return list(_entries(tree, module, "module"))


def rendered(found: list[Entry]) -> str:
    """The docstrings of a module as Markdown: a heading per name, with its signature."""
    lines = []
    for entry in found:
        parent = entry.name.rpartition(".")[0]
        if entry.kind == "module":
            lines.append(f"# {entry.name}\n\n{entry.docstring}\n")
        elif entry.kind == "class":
            lines.append(f"## class {entry.name}\n\n{entry.docstring}\n")
        else:
            lines.append(f"## {parent}.{entry.signature}\n\n{entry.docstring}\n")
    return "\n".join(lines)


def module_name(file: str) -> str:
    """`json.decoder` for `json/decoder.py`."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def _entries(node: ast.AST, name: str, kind: str) -> Iterator[Entry]:
    docstring = ast.get_docstring(node)
    if docstring:
        signature = ""
        if kind == "def":
            signature = f"{name.rpartition('.')[2]}({ast.unparse(node.args)})"
        yield Entry(name, kind, signature, docstring)
    if kind == "def":  # what a function defines inside is its own affair
        return
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _entries(child, f"{name}.{child.name}", "class")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _entries(child, f"{name}.{child.name}", "def")


def _package(package: str, files: list[tuple[str, str]]) -> Iterator[Text]:
    """A package's docstrings, its modules in an order that favours no letter of the alphabet."""
    license, chars = _licenses().get(package), 0
    for path, name in sorted(files, key=lambda pair: xxhash.xxh3_64_intdigest(pair[1].encode())):
        content = Path(path).read_bytes()
        text = rendered(entries(content, module_name(name))) if content.count(b'"""') > 1 else ""
        if text:
            chars += len(text)
            yield Text(text, license, {"module": module_name(name)})
        if chars > PACKAGE_CHARS:
            return


@functools.cache
def _licenses() -> dict[str, str]:
    """Top-level name -> licence, as far as the installed packages state theirs in a word or two."""
    found = {}
    for distribution in metadata.distributions():
        about = distribution.metadata
        license = about.get("License-Expression") or about.get("License") or ""
        if not license or len(license) > 60 or "\n" in license:
            classifiers = [c for c in about.get_all("Classifier") or () if c.startswith("License ::")]
            license = classifiers[0].rpartition(":: ")[2] if classifiers else ""
        for file in distribution.files or () if license else ():
            if file.suffix == ".py":
                found[file.parts[0].removesuffix(".py")] = license.lower()
    return found


def _is_documentation(name: str) -> bool:
    *folders, file = name.split("/")
    return not _LEFT_OUT.intersection([*folders, file.removesuffix(".py")]) and not file.startswith("test_")


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:  # a declared other encoding; a handful of files, not worth more
        return ""


def first_sentence(docstring: str) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join(inspect.cleandoc(docstring).split("\n\n")[0].split())
    end = paragraph.find(". ")
    return paragraph if end < 0 else paragraph[: end + 1]

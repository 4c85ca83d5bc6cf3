"""Documentation that every Python installation carries, read without importing what it documents.

`language_reference` is the text of `pydoc_data.topics`, `standard_library` the sources and docstrings of the standard
library, `packages` the docstrings of the installed packages (at most `MAX_PACKAGE_CHARS` of each, so that none
dominates).
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
from hf_llm.data.files.read_errors import NO_TEXT, ReadErrors

ITEMS = ("language_reference", "standard_library", "packages")
MAX_PACKAGE_CHARS = 500_000
MAX_LICENSE_CHARS = 60  # a longer text is the licence itself, not its name

# Tests, generated tables, copies of other packages: no documentation in them.
_SKIPPED_NAMES = {
    "test", "tests", "testing", "idlelib", "lib2to3", "turtledemo", "encodings", "pydoc_data", "site-packages",
    "dist-packages", "_vendor", "vendor", "__pycache__", "benchmarks", "pip", "setuptools", "hf_llm",
}  # fmt: skip


class DocstringEntry(NamedTuple):
    """A documented module, class, function or method."""

    name: str  # dotted, from the package on: json.JSONDecoder.decode
    kind: str  # "module", "class" or "def"
    signature: str  # as in a call, `decode(self, s)`; empty for a module or a class
    docstring: str  # without the source's indentation


class DocumentationText(NamedTuple):
    """A text of the documentation, its licence where the package states one, and what it documents."""

    text: str
    license: str | None
    metadata: dict
    records: int = 1
    """How many files or topics it stands for: 0 for the second text of a file."""


def group_files(item: str, group_bytes: int, errors: ReadErrors | None = None) -> list[list[tuple[Path, str]]]:
    """List the files of an item with their names, in groups of about `group_bytes`; a package is never divided.

    Files without documentation (tests, tables, copies of other packages) are counted in `errors` as left out. Raises
    UserError where this Python has none.
    """
    if item == "language_reference":
        spec = importlib.util.find_spec("pydoc_data.topics")
        if spec is None or not spec.origin:
            raise UserError("this Python has no pydoc_data.topics; leave language_reference out of `installed`")
        return [[(Path(spec.origin), "pydoc_data/topics.py")]]

    root = Path(sysconfig.get_path("stdlib" if item == "standard_library" else "purelib"))
    errors = errors or ReadErrors()
    files = []
    for file in root.rglob("*.py"):
        name = file.relative_to(root).as_posix()
        if _is_documentation(name):
            files.append((name, file))
        else:
            errors.records += 1
            errors.leave_out("test, table or copy of a package", name)
    files.sort()
    if not files:
        raise UserError(f"{root} holds no Python sources; leave {item} out of `installed`")

    groups = [[]]
    size = 0
    for _, package_files in groupby(files, key=lambda pair: _package_name(pair[0])):
        if size >= group_bytes:
            groups.append([])
            size = 0
        for name, file in package_files:
            groups[-1].append((file, name))
            size += file.stat().st_size
    return groups


def _is_documentation(name: str) -> bool:
    *folders, file = name.split("/")
    is_skipped = _SKIPPED_NAMES.intersection([*folders, file.removesuffix(".py")])
    return not is_skipped and not file.startswith("test_")


def _package_name(file: str) -> str:
    return file.split("/")[0]


def read_documentation(
    item: str, files: tuple[tuple[str, str], ...], errors: ReadErrors | None = None
) -> Iterator[DocumentationText]:
    """Yield the texts of some files of an item, as `group_files` lists them. Files without text are counted."""
    errors = errors or ReadErrors()
    if item == "language_reference":
        for topic, text in load_topics().items():
            errors.records += 1
            yield DocumentationText(text, None, {"topic": topic})
    elif item == "standard_library":
        for path, name in files:
            yield from _read_library_file(Path(path), name, errors)
    else:
        for package, package_files in groupby(files, key=lambda pair: _package_name(pair[1])):
            yield from _read_package(package, list(package_files), errors)


def load_topics() -> dict[str, str]:
    """Return the language reference: topic to text, in order of the topics' names."""
    import pydoc_data.topics

    return dict(sorted(pydoc_data.topics.topics.items()))


def list_docstrings(source: bytes, module: str) -> list[DocstringEntry]:
    """List every docstring of a module's source, in the source's order. Source that does not parse has none."""
    try:
        with warnings.catch_warnings(record=True):  # invalid escapes in the packages are not the user's to repair
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return []
    return list(_walk_docstrings(tree, module, "module"))


def _walk_docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str, kind: str
) -> Iterator[DocstringEntry]:
    is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    docstring = ast.get_docstring(node)
    if docstring:
        signature = ""
        if is_function:
            function_name = name.rpartition(".")[2]
            signature = f"{function_name}({ast.unparse(node.args)})"
        yield DocstringEntry(name, kind, signature, docstring)

    if is_function:  # what a function defines inside is not part of its interface
        return
    for child in node.body:
        if isinstance(child, ast.ClassDef):
            yield from _walk_docstrings(child, f"{name}.{child.name}", "class")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _walk_docstrings(child, f"{name}.{child.name}", "def")


def render_docstrings(docstrings: list[DocstringEntry]) -> str:
    """Render the docstrings of a module as Markdown: a heading per name, with its signature."""
    sections = []
    for entry in docstrings:
        if entry.kind == "module":
            heading = f"# {entry.name}"
        elif entry.kind == "class":
            heading = f"## class {entry.name}"
        else:
            parent = entry.name.rpartition(".")[0]
            heading = f"## {parent}.{entry.signature}"
        sections.append(f"{heading}\n\n{entry.docstring}\n")
    return "\n".join(sections)


def module_name(file: str) -> str:
    """Return the module of a file: `json.decoder` for `json/decoder.py`."""
    return file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def first_sentence(docstring: str) -> str:
    """Return the first sentence of a docstring, on one line."""
    first_paragraph = inspect.cleandoc(docstring).split("\n\n")[0]
    line = " ".join(first_paragraph.split())
    end = line.find(". ")
    if end < 0:
        return line
    return line[: end + 1]


def _read_library_file(path: Path, name: str, errors: ReadErrors) -> Iterator[DocumentationText]:
    """Yield the source of a file of the standard library, and its docstrings."""
    errors.records += 1
    content = path.read_bytes()
    source = _decode_source(content)
    if source.strip():
        yield DocumentationText(source, None, {"file": name})

    module = module_name(name)
    docstrings = render_docstrings(list_docstrings(content, module))
    if docstrings:
        yield DocumentationText(docstrings, None, {"module": module}, records=0 if source.strip() else 1)
    elif not source.strip():
        errors.leave_out(NO_TEXT, name)


def _decode_source(content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:  # it declares another encoding: a handful of files, of which the docstrings are read
        return ""


def _read_package(package: str, files: list[tuple[str, str]], errors: ReadErrors) -> Iterator[DocumentationText]:
    """Yield a package's docstrings, its modules in an order that favours no letter of the alphabet."""
    license = _read_licenses().get(package)
    chars = 0
    for path, name in sorted(files, key=lambda pair: xxhash.xxh3_64_intdigest(pair[1].encode())):
        errors.records += 1
        if chars > MAX_PACKAGE_CHARS:
            errors.leave_out(f"beyond {MAX_PACKAGE_CHARS:,} characters of its package", name)
            continue

        content = Path(path).read_bytes()
        module = module_name(name)
        text = ""
        if content.count(b'"""') > 1:  # else there is no docstring worth parsing for
            text = render_docstrings(list_docstrings(content, module))
        if text:
            chars += len(text)
            yield DocumentationText(text, license, {"module": module})
        else:
            errors.leave_out("no docstring", name)


@functools.cache
def _read_licenses() -> dict[str, str]:
    """Return the licence of each top-level name, where the installed package states it in a word or two."""
    licenses = {}
    for distribution in metadata.distributions():
        license = _license_name(distribution.metadata)
        if not license:
            continue
        for file in distribution.files or ():
            if file.suffix == ".py":
                top_level_name = file.parts[0].removesuffix(".py")
                licenses[top_level_name] = license.lower()
    return licenses


def _license_name(package_metadata: metadata.PackageMetadata) -> str:
    """Return the name of a package's licence by its metadata or its classifiers; empty where neither has one."""
    licenses = [*package_metadata.get_all("License-Expression", []), *package_metadata.get_all("License", [])]
    license = next(filter(None, licenses), "")
    is_name = license and len(license) <= MAX_LICENSE_CHARS and "\n" not in license
    if is_name:
        return license
    for classifier in package_metadata.get_all("Classifier") or ():
        if classifier.startswith("License ::"):
            return classifier.rpartition(":: ")[2]
    return ""

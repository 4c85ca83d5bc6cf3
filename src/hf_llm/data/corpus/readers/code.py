"""Turn source files into documents: each whole, with its programming language and the licence nearest to it.

Notebooks give their cells, without outputs, those of prose as comments. What a program wrote is left out, and counted.
"""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm.data.corpus.readers.document import RawDocument
from hf_llm.data.files.git_repos import detect_machine_written, find_spdx_identifier, license_root, nearest_license
from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.files.text_files import read_code_documents, split_text

if TYPE_CHECKING:
    from hf_llm.data.corpus.config import Source

LANGUAGES_BY_SUFFIX = {
    ".py": "Python", ".pyi": "Python", ".ipynb": "Python", ".c": "C", ".h": "C", ".cc": "C++", ".cpp": "C++",
    ".cxx": "C++", ".hpp": "C++", ".cu": "CUDA", ".cuh": "CUDA", ".java": "Java", ".kt": "Kotlin", ".scala": "Scala",
    ".js": "JavaScript", ".jsx": "JavaScript", ".mjs": "JavaScript", ".ts": "TypeScript", ".tsx": "TypeScript",
    ".go": "Go", ".rs": "Rust", ".rb": "Ruby", ".php": "PHP", ".swift": "Swift", ".cs": "C#", ".lua": "Lua",
    ".pl": "Perl", ".r": "R", ".jl": "Julia", ".hs": "Haskell", ".ml": "OCaml", ".ex": "Elixir", ".exs": "Elixir",
    ".erl": "Erlang", ".clj": "Clojure", ".sh": "Shell", ".bash": "Shell", ".sql": "SQL", ".css": "CSS",
    ".scss": "SCSS", ".proto": "Protocol Buffers", ".f90": "Fortran", ".m": "Objective-C", ".mm": "Objective-C++",
    ".zig": "Zig", ".dart": "Dart", ".vue": "Vue", ".svelte": "Svelte", ".html": "HTML", ".md": "Markdown",
    ".rst": "reStructuredText", ".toml": "TOML", ".yaml": "YAML", ".yml": "YAML", ".cmake": "CMake", ".tex": "TeX",
}  # fmt: skip
_LANGUAGES_BY_NAME = {"makefile": "Makefile", "dockerfile": "Dockerfile", "cmakelists.txt": "CMake"}


def read(path: Path, errors: ReadErrors, source: "Source", max_chars: int) -> Iterator[RawDocument]:
    """Yield one source file, in pieces if it is longer than `max_chars`. A file that is not UTF-8 is dropped."""
    if path.suffix.lower() == ".ipynb":
        yield from _read_notebook(path, errors, source, max_chars)
        return

    texts = read_code_documents(path, max_chars, errors)
    first_text = next(texts, "")
    if not first_text:
        return
    reason = detect_machine_written(first_text)
    if reason is not None:
        errors.leave_out(reason, str(path))
        return

    license = find_spdx_identifier(first_text) or find_license(path, source)
    for text in chain([first_text], texts):
        yield RawDocument(text, license=license, about=_describe_file(path))


def _read_notebook(path: Path, errors: ReadErrors, source: "Source", max_chars: int) -> Iterator[RawDocument]:
    errors.records += 1
    try:
        notebook = json.loads(path.read_bytes())
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        errors.drop_record("no notebook", str(path), str(error))
        return

    texts = []
    for cell_type, text in cells:
        if not text.strip() or cell_type == "raw":
            continue
        texts.append(text if cell_type == "code" else _comment_out(text))
    if not texts:
        return

    license = find_license(path, source)
    for piece in split_text("\n\n".join(texts) + "\n", max_chars):
        yield RawDocument(piece, license=license, about=_describe_file(path))


def _comment_out(text: str) -> str:
    return "\n".join(f"# {line}".rstrip() for line in text.splitlines())


def _describe_file(path: Path) -> dict[str, str]:
    language = _LANGUAGES_BY_NAME.get(path.name.lower()) or LANGUAGES_BY_SUFFIX.get(path.suffix.lower())
    return {"programming_language": language} if language else {}


def find_license(path: Path, source: "Source") -> str | None:
    """Find the licence stated nearest to a file within its source; None if there is none: the source's applies."""
    is_clone = source.git and not Path(source.git).expanduser().is_dir()
    if is_clone:
        top = Path(path.anchor)  # the search ends at the root of the clone
    else:
        top = license_root(source.path or source.git or str(path))
    if not path.is_relative_to(top):
        return None  # a member of an archive, unpacked elsewhere: its licences are looked for in the archive
    license = nearest_license(path, top)
    return None if license == "unknown" else license

"""Files of programs turned into documents: each whole, with its language and the licence nearest to it.

Notebooks give their cells, the prose ones as comments, without outputs. What a program wrote is left out.
"""

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm.data.corpus.readers.document import Found
from hf_llm.data.files.git_repos import detect_machine_written, find_spdx_identifier, nearest_license
from hf_llm.data.files.read_errors import Faults
from hf_llm.data.files.text_files import cut, read_code_documents

if TYPE_CHECKING:
    from hf_llm.data.corpus.sources import Source

LANGUAGES = {
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
_BY_NAME = {"makefile": "Makefile", "dockerfile": "Dockerfile", "cmakelists.txt": "CMake"}


def read(path: Path, faults: Faults, source: "Source", max_chars: int) -> Iterator[Found]:
    """One file of a program, in pieces where it is longer than `max_chars`; no UTF-8 text, no document."""
    if path.suffix.lower() == ".ipynb":
        yield from _notebook(path, faults, source, max_chars)
        return
    documents = read_code_documents(path, max_chars, faults)
    first = next(documents, "")
    if not first or detect_machine_written(first):
        return
    license = find_spdx_identifier(first) or _license_near(path, source)
    for text in chain([first], documents):
        yield Found(text, license=license, about=_about(path))


def _notebook(path: Path, faults: Faults, source: "Source", max_chars: int) -> Iterator[Found]:
    faults.records += 1
    try:
        notebook = json.loads(path.read_bytes())
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        faults.drop("no notebook", str(path), str(error))
        return
    texts = [text if kind == "code" else _as_comment(text) for kind, text in cells if text.strip() and kind != "raw"]
    if texts:
        license = _license_near(path, source)
        for piece in cut("\n\n".join(texts) + "\n", max_chars):
            yield Found(piece, license=license, about=_about(path))


def _as_comment(text: str) -> str:
    return "\n".join(f"# {line}".rstrip() for line in text.splitlines())


def _about(path: Path) -> dict[str, str]:
    language = _BY_NAME.get(path.name.lower(), LANGUAGES.get(path.suffix.lower()))
    return {"programming_language": language} if language else {}


def _license_near(path: Path, source: "Source") -> str | None:
    """The licence file nearest to a file within its source; None where there is none: the source's own holds."""
    if source.git:
        top = Path(path.anchor)  # the search ends at the repository's root
    else:
        top = Path(source.path or path.parent).expanduser()
    found = nearest_license(path, top if top.is_dir() else path.parent)
    return None if found == "unknown" else found

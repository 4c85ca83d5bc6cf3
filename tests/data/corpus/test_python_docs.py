import json
import sys
from pathlib import Path

from hf_llm.data.corpus.python_docs import (
    first_sentence,
    group_files,
    list_docstrings,
    load_topics,
    read_documentation,
    render_docstrings,
)

SOURCE = b'''"""A module. It has more to say.

And more.
"""

class Shape:
    """A shape."""

    def area(self, scale: float = 1.0, *, unit="m") -> float:
        """The area in
        square units. Always positive."""

    def perimeter(self): ...

async def fetch(url):
    """Fetch it."""
    def inner():
        """Nobody's business."""
'''


def test_docstrings_are_found_with_names_and_signatures():
    names = [(entry.name, entry.kind, entry.signature) for entry in list_docstrings(SOURCE, "shapes")]
    assert names == [
        ("shapes", "module", ""),
        ("shapes.Shape", "class", ""),
        ("shapes.Shape.area", "def", "area(self, scale: float=1.0, *, unit='m')"),
        ("shapes.fetch", "def", "fetch(url)"),
    ]
    text = render_docstrings(list_docstrings(SOURCE, "shapes"))
    assert text.startswith("# shapes\n\nA module. It has more to say.")
    assert "## shapes.Shape.area(self, scale: float=1.0, *, unit='m')\n\nThe area in\nsquare units." in text


def test_source_that_does_not_parse_has_no_docstrings():
    assert list_docstrings(b"print 'hello'", "old") == []
    assert list_docstrings(b"x = '\0'", "nul") == []


def test_the_first_sentence_ends_where_it_ends():
    assert first_sentence("The area in\n    square units. Always positive.") == "The area in square units."
    assert first_sentence("No stop\n\nAnother paragraph.") == "No stop"


def test_the_standard_library_is_read_without_importing_it():
    before = set(sys.modules)
    [[*files]] = group_files("standard_library", 1 << 40)
    json_files = tuple((str(path), name) for path, name in files if name == "json/__init__.py")
    source, docstrings = read_documentation("standard_library", json_files)
    assert source.text == Path(json.__file__).read_text(encoding="utf-8")
    assert docstrings.text.startswith("# json\n\nJSON (JavaScript Object Notation)")
    assert docstrings.metadata == {"module": "json"}
    assert not any(name.startswith("test/") or "site-packages" in name for _, name in files)
    assert set(sys.modules) - before <= {"pydoc_data", "pydoc_data.topics"}


def test_packages_are_whole_in_their_group_and_carry_their_licence():
    groups = group_files("packages", 1 << 20)
    homes = [{name.split("/")[0] for _, name in group} for group in groups]
    assert len(groups) > 10
    assert sum(map(len, homes)) == len(set.union(*homes))
    files = tuple((str(path), name) for group in groups for path, name in group if name.startswith("yaml/"))
    texts = list(read_documentation("packages", files))
    assert texts and {text.license for text in texts} == {"mit"}


def test_the_language_reference_has_its_topics():
    assert "assert" in load_topics() and list(load_topics()) == sorted(load_topics())

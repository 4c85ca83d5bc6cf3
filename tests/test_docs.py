"""The pages of docs/: an index with every page in it, links that lead somewhere, quoted messages that exist."""

import re
from pathlib import Path

import pytest

from tests.reference_page import PAGE, render
from tests.tiny_recipe import ROOT

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def test_the_index_names_every_page():
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    missing = [page.name for page in PAGES if page.name != "README.md" and f"({page.name})" not in index]
    assert missing == []


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (page.parent / target).exists(), target


def test_every_test_that_the_page_of_faults_names_exists():
    named = re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", (DOCS / "faults.md").read_text(encoding="utf-8"))
    assert len(named) > 80
    for path, test in named:
        assert f"def {test}" in (ROOT / path).read_text(encoding="utf-8") or not test, (path, test)


def test_the_reference_page_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == render(), "run `make reference`"


def test_every_recipe_key_has_a_docstring():
    from tests.reference_page import collect_keys

    assert [key for key, entry in collect_keys().items() if not entry.text] == []


def test_messages_that_troubleshooting_quotes_exist_in_the_source():
    source = "".join(path.read_text(encoding="utf-8") for path in Path(ROOT / "src").rglob("*.py"))
    quoted = re.findall(r"\*\*(.+?)\*\*", (DOCS / "troubleshooting.md").read_text(encoding="utf-8"))
    assert len(quoted) > 8
    assert [message for message in quoted if message not in source] == []

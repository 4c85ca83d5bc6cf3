"""The page about a corpus: one file, everything escaped, every rule with what it left out."""

import copy

from hf_llm.core.manifest import write_manifest
from hf_llm.reporting.corpus_page import describe_source, render_corpus_page, shares_by_bytes
from tests.page_structure import Structure


def test_the_page_shows_every_filter_of_every_source_with_samples(run):
    text = render_corpus_page(run.root, "mine")
    structure = Structure(text)
    words = " ".join(structure.text.split())
    assert structure.addresses == []
    for wanted in (
        "1,104 files and records were there: 1,090 used, 12 left out, 2 unreadable.", "files and records there 1.1k",
        "left out hidden 9 .git/<config>", "left out kind that is not read: .png 3", "unreadable not_utf8 2",
        "1,090", "duplicate 1,008", "redacted email 3", "not utf8 2", "a.txt, line 3: not UTF-8",
        "512 to 1,023 characters", "1,234 characters were cut", "kept: 1e1e1e1e1e1e", "A <b>copy</b>",
    ):  # fmt: skip
        assert wanted in words, wanted
    assert "<b>copy" not in text


def test_the_corpus_of_an_earlier_version_has_its_page(run, tmp_path):
    ledger = copy.deepcopy(run.manifests["corpus"]["facts"]["ledger"])
    for source in ledger["sources"].values():
        del source["input"]
    settings = {"folder": "corpus", "headline": "", "seconds": 1.0, "licenses": [], "settings": {}, "inputs": {}}
    (tmp_path / "corpus").mkdir()
    write_manifest(tmp_path / "corpus", **settings, facts={"ledger": ledger})
    words = " ".join(Structure(render_corpus_page(tmp_path, "old")).text.split())
    assert "duplicate 1,008" in words and "were there" not in words


def test_a_run_without_a_corpus_has_no_page(tmp_path):
    assert render_corpus_page(tmp_path, "mine") is None


def test_describe_source_gives_shares_of_the_documents_read():
    rules = {
        name: {"documents": documents, "bytes": documents * 10, "seconds": 0.1, "dropped": {}, "changed": {}}
        for name, documents in (("read", 200), ("length", 50))
    }
    entry = {"license": "mit", "rules": rules, "lengths": [0, 0, 4, 2], "unreadable": {}}
    described = describe_source("texts", entry, bytes_per_token=5.0)
    assert [(row["share"], row["tokens"]) for row in described["rows"]] == [(100, 400), (25, 100)]
    assert described["lengths"] == [{"from": 4, "documents": 4, "share": 100}, {"from": 8, "documents": 2, "share": 50}]


def test_shares_by_bytes_has_the_largest_first():
    counts = {"a": {"documents": 9, "bytes": 25}, "b": {"documents": 1, "bytes": 75}}
    assert shares_by_bytes(counts) == [("b", 1, 75, 75.0), ("a", 9, 25, 25.0)]

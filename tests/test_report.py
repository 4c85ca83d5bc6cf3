"""The report stage, as a command."""

import json

import pytest

from hf_llm import report
from hf_llm.core.manifest import read_manifest, write_manifest

RECIPE = "name: tiny\nsft: {data: []}\n"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return "tiny.yaml"


def finish_folder(folder, headline):
    folder.mkdir(parents=True)
    entries = {"headline": headline, "seconds": 1.0, "licenses": [], "settings": {}, "inputs": {}, "facts": {}}
    write_manifest(folder, folder=folder.name, **entries)


def test_the_report_of_a_run_without_any_stage_says_so(recipe, tmp_path, capsys):
    report.main([recipe])
    text = (tmp_path / "runs/tiny/report/index.html").read_text()
    assert "no model has been trained yet" in text
    assert read_manifest(tmp_path / "runs/tiny/report")["folder"] == "report"
    assert "index.html" in capsys.readouterr().out


def test_a_report_is_rebuilt_when_the_run_has_continued(recipe, tmp_path):
    page = tmp_path / "runs/tiny/report/index.html"
    corpus = tmp_path / "runs/tiny/corpus"
    report.main([recipe])
    finish_folder(corpus, "12 documents")
    report.main([recipe])
    assert "12 documents" in page.read_text()
    assert not page.with_name("index.html.tmp").exists()
    manifest = json.loads((page.parent / "manifest.json").read_text())
    assert manifest["files"]["index.html"][0] == page.stat().st_size


def test_the_name_of_the_run_is_the_title(recipe, tmp_path):
    report.main([recipe, "--name=other"])
    assert "<h1>other</h1>" in (tmp_path / "runs/other/report/index.html").read_text()

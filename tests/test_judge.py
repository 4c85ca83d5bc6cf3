"""The old name of `hf_llm.arena`."""

import json
from pathlib import Path

from tests.tiny_recipe import run_module


def test_the_old_name_says_the_new_one_and_does_the_same(tmp_path: Path):
    row = {"prompt": "Which?", "ours": "the same", "gpt2": "the same"}
    (tmp_path / "answers.jsonl").write_text(json.dumps(row) + "\n")
    arguments = ("answers.jsonl", "--terminal", "--annotator", "Ada")
    old = run_module("hf_llm.judge", *arguments, folder=tmp_path)
    new = run_module("hf_llm.arena", *arguments, folder=tmp_path)
    assert old.returncode == new.returncode == 0
    assert "python -m hf_llm.arena" in old.stderr
    assert old.stdout == new.stdout

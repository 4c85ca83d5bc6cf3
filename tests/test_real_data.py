"""The quickstart recipe on text and chats that are not ours. Needs the folder of real data, HF_LLM_DATA."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hf_llm.core.manifest import read_manifest
from hf_llm.core.recipe import parse_yaml
from tests.tiny_recipe import run_module

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "recipes" / "quickstart.yaml"
DATA = os.environ.get("HF_LLM_DATA", "")


@pytest.mark.skipif(not DATA, reason="HF_LLM_DATA is not set")
def test_the_quickstart_recipe_runs_on_shakespeare_alpaca_and_hh_rlhf(tmp_path):
    done = run_module(
        "hf_llm.run",
        RECIPE,
        "--name=real",
        f"--corpus.sources=[{{path: {DATA}/tinyshakespeare/input.txt, license: cc0-1.0}}]",
        f"--sft.data=[{{path: {DATA}/alpaca, license: cc-by-nc-4.0, take: 200}}]",
        f"--dpo.data=[{{path: {DATA}/hh_rlhf, license: mit, take: 100}}]",
        "--model.hidden_size=64",
        "--model.num_hidden_layers=2",
        "--pretrain.training.max_steps=6",
        "--pretrain.training.eval_steps=6",
        "--sft.training.max_steps=4",
        "--dpo.training.max_steps=4",
        "--pretrain.evaluation_tokens=4096",
        "--evaluate.tokens=4096",
        "--evaluate.max_new_tokens=8",
        folder=tmp_path,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    manifest = read_manifest(tmp_path / "runs/real/dpo")
    assert manifest["licenses"] == ["cc-by-nc-4.0", "cc0-1.0", "mit"]
    card = (tmp_path / "runs/real/dpo/README.md").read_text(encoding="utf-8")
    assert "cc-by-nc-4.0" in card


@pytest.mark.skipif(not DATA, reason="HF_LLM_DATA is not set")
def test_every_kind_of_source_becomes_one_corpus(tmp_path):
    shutil.copytree(ROOT / "src" / "hf_llm" / "model", tmp_path / "model", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "LICENSE", tmp_path)
    for command in (["git", "init", "-q"], ["git", "add", "-A"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    recipe = ROOT / "recipes" / "examples" / "every_source.yaml"
    done = run_module("hf_llm.prepare_data", recipe, folder=tmp_path, HF_LLM_DATA=DATA)
    assert done.returncode == 0, done.stdout + done.stderr
    ledger = json.loads((tmp_path / "runs/every_source/corpus/ledger.json").read_text(encoding="utf-8"))
    kept = {name: list(entry["rules"].values())[-1]["documents"] for name, entry in ledger["sources"].items()}
    assert set(kept) == {source["name"] for source in parse_yaml(recipe.read_text())["corpus"]["sources"]}
    assert all(count > 2 for count in kept.values()), kept
    read = ledger["sources"]["web"]["rules"]["read"]
    assert read["documents"] > 30 and read["dropped"] == {"wrong record length": 1}  # one of the WARCs is cut short
    assert {"en", "de", "zh", "ar"} <= set(ledger["languages"])
    assert ledger["licenses"]["apache-2.0"]["documents"] > 2  # of the repository, by its LICENSE
    assert ledger["sources"]["crawled"]["rules"]["pii"]["changed"]["redacted_email"] > 0
    asked = "--explain=moby_dick_pg2701.txt"
    told = run_module("hf_llm.prepare_data", recipe, asked, folder=tmp_path, HF_LLM_DATA=DATA)
    assert "Herman Melville" in told.stdout and "kept, in train" in told.stdout

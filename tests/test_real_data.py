"""The quickstart recipe on text and chats that are not ours. Needs the folder of real data, HF_LLM_DATA."""

import os
from pathlib import Path

import pytest
from tiny_recipe import run_module

from hf_llm.manifest import read_manifest

RECIPE = Path(__file__).parent.parent / "recipes" / "quickstart.yaml"
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

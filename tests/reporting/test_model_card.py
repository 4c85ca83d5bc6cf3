"""The model card: everything a stranger needs, nothing that is nobody's business."""

import shutil
import sys

import pytest
from huggingface_hub import ModelCard

from hf_llm.core.licenses import HUB_LICENSES
from hf_llm.core.manifest import read_manifest, write_json
from hf_llm.reporting.model_card import build_front_matter, render_model_card

TOKEN = "hf_" + "Qx7" * 11


def test_the_front_matter_is_what_the_hub_reads(run):
    data = ModelCard(render_model_card(run.root / "sft")).data
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "text-generation"
    assert data.tags == ["hf_llm", "sft", "conversational"]
    assert data.datasets == ["HuggingFaceFW/fineweb-edu"]
    assert data.license == ["cc-by-4.0", "odc-by", "other", "unknown"]
    assert data.license_name == "psf-2.0"
    assert data.license_link == "https://spdx.org/licenses/PSF-2.0.html"
    assert data.language == ["en"]


@pytest.mark.parametrize(
    ("licenses", "license", "name"),
    [
        (["mit"], "mit", None),
        ([], "unknown", None),
        (["psf-2.0"], "other", "psf-2.0"),
        (["mit", "odc-by"], ["mit", "odc-by"], None),
    ],
)
def test_a_licence_unknown_to_the_hub_is_named_beside_other(licenses, license, name):
    data = build_front_matter({"folder": "base"}, [], licenses, kind="base")
    assert data.license == license
    assert data.license_name == name
    assert set([license] if isinstance(license, str) else license) <= HUB_LICENSES


def test_a_base_models_card_shows_completion_and_a_chat_models_chat(run):
    base, chat = render_model_card(run.root / "base"), render_model_card(run.root / "sft")
    assert "apply_chat_template" not in base
    assert "conversational" not in base
    assert "apply_chat_template" in chat
    assert "base, sft" in chat


@pytest.mark.parametrize("stage", ["base", "sft"])
def test_the_code_on_a_card_is_python(run, stage):
    code = render_model_card(run.root / stage, "someone/tiny").split("```python")[1].split("```")[0]
    compile(code, "card", "exec")
    assert 'name = "someone/tiny"' in code


def test_the_snippet_trusts_remote_code_only_where_the_model_has_its_own(run, tmp_path):
    assert "trust_remote_code" not in render_model_card(run.root / "base")
    folder = shutil.copytree(run.root / "base", tmp_path / "base")
    write_json(folder / "config.json", {"model_type": "hf_llm", "auto_map": {"AutoModelForCausalLM": "m.C"}})
    assert "trust_remote_code=True" in render_model_card(folder)


def test_a_card_lists_data_licences_settings_results_versions_and_lineage(run):
    card = render_model_card(run.root / "sft")
    assert "[HuggingFaceFW/fineweb-edu sample-10BT](https://huggingface.co/datasets/HuggingFaceFW/fineweb-edu)" in card
    assert "**unknown**" in card
    assert "| `training.learning_rate` | 0.01 |" in card
    assert "| bits per byte on the test split (lower is better) | 1.7725 (4,096 tokens) |" in card
    assert "| perplexity on held-out answers (lower is better) | " in card
    assert "perplexity on the validation text" in render_model_card(run.root / "base")
    assert "transformers 5." in card
    assert "small model" in card
    for name in ("corpus", "tokenizer", "tokens", "base", "sft"):
        assert f"| {name} | `{run.manifests[name]['digest']}` |" in card


def test_every_table_row_ends_with_a_bar(run):
    rows = [line for line in render_model_card(run.root / "sft").splitlines() if line.startswith("|")]
    assert rows
    assert all(line.endswith("|") for line in rows)


def test_no_secret_and_no_local_path_gets_into_a_card(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("WANDB_API_KEY", "wandb0secret0value")
    monkeypatch.setattr(sys, "argv", ["hf_llm.sft", f"--sft.training.hub_token={TOKEN}"])
    root = shutil.copytree(run.root, tmp_path / "run")
    manifest = read_manifest(root / "sft")
    manifest["settings"] |= {
        "sft.training.hub_token": TOKEN,
        "sft.training.run_name": f"run of {TOKEN}",
        "sft.training.project": "wandb0secret0value",
    }
    write_json(root / "sft" / "manifest.json", manifest)
    card = render_model_card(root / "sft")
    assert "run_name" in card
    assert TOKEN not in card
    assert "wandb0secret0value" not in card
    assert "/home/someone" not in card
    assert str(tmp_path) not in card


def test_an_unfinished_folder_has_no_card(tmp_path):
    with pytest.raises(AssertionError, match="not finished"):
        render_model_card(tmp_path)

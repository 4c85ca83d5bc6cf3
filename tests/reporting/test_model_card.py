"""The model card: everything a stranger needs, nothing that is nobody's business."""

import math
import re
import shutil
import sys

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id

from hf_llm.core.licenses import HUB_LICENSES
from hf_llm.core.manifest import file_digests, read_manifest, write_json
from hf_llm.reporting.lineage import hub_dataset, list_sources
from hf_llm.reporting.model_card import build_front_matter, render_model_card, write_adapter_card, write_model_card

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
        (["MIT"], "mit", None),
        (["Apache-2.0", "apache 2.0", "apache"], "apache-2.0", None),
        (["MIT OR Apache-2.0"], ["apache-2.0", "mit"], None),
        (["PSF-2.0", "HPND", "mit"], ["mit", "other"], "hpnd-and-psf-2.0"),
        (["My Own Terms"], "other", "my-own-terms"),
        (["a sentence " * 50], "other", "own-license"),
        ([f"terms number {n} of a long list" for n in range(20)], "other", "several-licenses"),
    ],
)
def test_a_licence_unknown_to_the_hub_is_named_beside_other(licenses, license, name):
    data = build_front_matter({"folder": "base"}, [], licenses, kind="base")
    assert data.license == license
    assert data.license_name == name
    assert (data.license_link is None) == (name is None)
    assert name is None or re.fullmatch(r"[a-z0-9.-]{1,60}", name)
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


def test_the_licence_is_linked_where_it_is_to_be_found(run, tmp_path):
    def link(licenses):
        return build_front_matter({"folder": "base"}, [], licenses, kind="base").license_link

    assert link(["psf-2.0", "mit"]) == "https://spdx.org/licenses/PSF-2.0.html"
    assert link(["my own terms"]) == link(["psf-2.0", "hpnd"]) == "LICENSE.md"

    folder = shutil.copytree(run.root / "base", tmp_path / "base")
    manifest = read_manifest(folder)
    write_model_card(folder)
    assert not (folder / "LICENSE.md").exists()
    write_json(folder / "manifest.json", {**manifest, "licenses": ["PSF-2.0", "my own terms", "MIT"]})
    write_model_card(folder)
    text = (folder / "LICENSE.md").read_text()
    assert "- [PSF-2.0](https://spdx.org/licenses/PSF-2.0.html)\n" in text
    assert "- my own terms\n" in text and "/MIT.html" in text
    assert ModelCard.load(folder / "README.md").data.license_link == "LICENSE.md"
    assert file_digests(folder) == manifest["files"]  # neither belongs to what the manifest counts


@pytest.mark.parametrize(
    ("hub", "dataset"),
    [
        ("Anthropic/hh-rlhf", "Anthropic/hh-rlhf"),
        ("hf://datasets/HuggingFaceFW/fineweb/data/*.parquet", "HuggingFaceFW/fineweb"),
        ("hf://datasets/HuggingFaceFW/fineweb@v1.2/data/CC-MAIN-2024-10/000.parquet", "HuggingFaceFW/fineweb"),
        ("imdb", "imdb"),
        ("hf://buckets/someone/else", ""),
        ("not/an/id", ""),
        ("", ""),
    ],
)
def test_data_sets_on_a_card_are_ids_of_the_hub(hub, dataset):
    assert hub_dataset(hub) == dataset
    manifest = {"folder": "sft", "settings": {"sft.data": [{"hub": hub, "license": "MIT"}]}}
    sources = list_sources({"sft": manifest})
    data = build_front_matter(manifest, sources, ["mit"], kind="chat")
    assert data.datasets == ([dataset] if dataset else None)
    for name in data.datasets or []:
        validate_repo_id(name)


def test_the_card_has_the_test_results_as_the_hub_reads_them(run):
    card = ModelCard(render_model_card(run.root / "sft", "someone/tiny"))
    scores = {result.metric_type: result for result in card.data.eval_results}
    assert card.data.model_name == "someone/tiny"
    assert scores["perplexity"].metric_value == pytest.approx(math.exp(4.3))
    assert scores["bits_per_byte"].metric_args == {"tokens": 4096}
    assert {result.dataset_split for result in scores.values()} == {"test"}
    assert [entry["name"] for entry in card.data.to_dict()["model-index"]] == ["someone/tiny"]
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    assert "model-index" not in ModelCard(render_model_card_without_evaluation(run)).data.to_dict()


def render_model_card_without_evaluation(run):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_llm.reporting.model_card.read_test_scores", lambda folder: None)
        return render_model_card(run.root / "sft")


def test_the_card_claims_of_the_test_split_what_was_checked(run):
    base, chat = render_model_card(run.root / "base"), render_model_card(run.root / "sft")
    apart = "read the train split of this corpus, which has no document of the test split."
    unchecked = "Whether the data of sft, which have sources of their own, repeat text of the test split was not"
    assert apart in base and unchecked not in base
    assert apart in chat and unchecked in chat
    for card in (base, chat):
        assert "no model was trained on" not in card.lower()


def test_the_shares_of_the_licences_are_those_of_the_ledger(run, tmp_path):
    root = shutil.copytree(run.root, tmp_path / "run")
    manifest = read_manifest(root / "corpus")
    counts = {
        "psf-2.0": {"documents": 1, "bytes": 48}, "apache 2.0": {"documents": 1, "bytes": 20},
        "Apache-2.0": {"documents": 1, "bytes": 20}, "MIT": {"documents": 1, "bytes": 12},
    }  # fmt: skip
    manifest["facts"]["ledger"]["licenses"] = counts
    write_json(root / "corpus" / "manifest.json", manifest)
    card = render_model_card(root / "base")
    assert "by bytes: psf-2.0 48.0%, apache-2.0 40.0%, mit 12.0%." in card


def test_the_card_of_an_adapter_is_ours_and_valid(tmp_path):
    modules = ["q_proj", "v_proj"]
    config = {"r": 8, "lora_alpha": 16, "target_modules": modules, "base_model_name_or_path": str(tmp_path)}
    write_json(tmp_path / "adapter_config.json", config)
    (tmp_path / "README.md").write_text("# Model Card for Model ID")
    write_adapter_card(tmp_path, "dpo", ["MIT", "psf-2.0", "my own terms"])
    card = ModelCard.load(tmp_path / "README.md")
    assert "Model Card for Model ID" not in card.text
    assert str(tmp_path) not in str(card)
    assert card.data.library_name == "peft"
    assert card.data.license == ["mit", "other"]
    assert card.data.license_link == "../LICENSE.md"
    assert "rank 8, alpha 16, on q_proj, v_proj" in card.text

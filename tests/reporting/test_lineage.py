"""What the folders of a run say about a model."""

import json
import shutil

from safetensors.torch import load_file

from hf_llm.core.manifest import write_manifest
from hf_llm.reporting import lineage


def test_a_model_descends_from_every_folder_it_was_made_of(run):
    assert list(lineage.lineage(run.root / "sft")) == ["corpus", "tokenizer", "tokens", "base", "sft"]
    assert lineage.lineage(run.root / "nothing") == {}


def test_a_neighbour_made_anew_since_is_no_ancestor(run, tmp_path):
    root = shutil.copytree(run.root, tmp_path / "again")
    (root / "corpus" / "more.txt").write_text("another text")
    manifest = json.loads((root / "corpus" / "manifest.json").read_text())
    write_manifest(root / "corpus", **{k: manifest[k] for k in ("folder", "licenses", "settings", "inputs", "facts")})
    assert list(lineage.lineage(root / "sft")) == ["tokenizer", "tokens", "base", "sft"]


def test_sources_are_named_with_their_licence_and_without_their_place(run):
    found = lineage.list_sources(lineage.lineage(run.root / "sft"))
    assert [(source["used_for"], source["hub"], source["license"]) for source in found] == [
        ("pretraining", "", "psf-2.0"),
        ("pretraining", "HuggingFaceFW/fineweb-edu", "odc-by"),
        ("pretraining", "", "unknown"),
        ("sft", "", "cc-by-4.0"),
    ]
    assert found[0]["name"] == "documentation installed with Python (language reference)"
    assert found[2]["name"] == "letters"


def test_parameters_are_counted_from_the_weights(run):
    tensors = load_file(run.root / "base" / "model.safetensors")
    assert lineage.count_parameters(run.root / "base") == sum(tensor.numel() for tensor in tensors.values())
    assert lineage.count_parameters(run.root / "corpus") is None


def test_the_log_is_trainers_own_with_what_was_added_to_it(run):
    log = lineage.log_history(run.root / "base")
    assert sum("tokens_per_second" in entry for entry in log) == 15
    assert lineage.finite_values(log, "eval_bits_per_byte")[-1] > 0
    assert lineage.finite_values(log, "nothing") == []
    assert lineage.log_history(run.root / "corpus") == []


def test_test_scores_belong_to_the_very_model_that_was_evaluated(run, tmp_path):
    assert lineage.read_test_scores(run.root / "base")["loss"] == 4.2
    root = shutil.copytree(run.root, tmp_path / "again")
    manifest = json.loads((root / "base" / "manifest.json").read_text())
    (root / "base" / "manifest.json").write_text(json.dumps({**manifest, "digest": "other"}))
    assert lineage.read_test_scores(root / "base") is None
    assert lineage.read_test_scores(root / "corpus") is None

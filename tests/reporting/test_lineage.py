"""What the folders of a run say about a model."""

import json
import shutil

from safetensors.torch import load_file

from hf_llm.core.manifest import write_manifest
from hf_llm.reporting import lineage


def test_lineage_lists_every_folder_that_a_model_was_made_from(run):
    assert list(lineage.read_lineage(run.root / "sft")) == ["corpus", "tokenizer", "tokens", "base", "sft"]
    assert lineage.read_lineage(run.root / "nothing") == {}


def test_lineage_leaves_out_a_folder_that_was_rebuilt_since(run, tmp_path):
    root = shutil.copytree(run.root, tmp_path / "again")
    (root / "corpus" / "more.txt").write_text("another text")
    manifest = json.loads((root / "corpus" / "manifest.json").read_text())
    write_manifest(root / "corpus", **{k: manifest[k] for k in ("folder", "licenses", "settings", "inputs", "facts")})
    assert list(lineage.read_lineage(root / "sft")) == ["tokenizer", "tokens", "base", "sft"]


def test_list_sources_gives_licences_and_no_local_paths(run):
    sources = lineage.list_sources(lineage.read_lineage(run.root / "sft"))
    assert [(source["used_for"], source["hub"], source["license"]) for source in sources] == [
        ("pretraining", "", "psf-2.0"),
        ("pretraining", "HuggingFaceFW/fineweb-edu", "odc-by"),
        ("pretraining", "", "unknown"),
        ("sft", "", "cc-by-4.0"),
    ]
    assert sources[0]["name"] == "documentation installed with Python (language reference)"
    assert sources[2]["name"] == "letters"


def test_count_parameters_reads_the_weights(run):
    tensors = load_file(run.root / "base" / "model.safetensors")
    assert lineage.count_parameters(run.root / "base") == sum(tensor.numel() for tensor in tensors.values())
    assert lineage.count_parameters(run.root / "corpus") is None


def test_the_log_history_holds_the_numbers_of_the_callbacks(run):
    log = lineage.read_log_history(run.root / "base")
    assert sum("tokens_per_second" in entry for entry in log) == 15
    assert lineage.finite_values(log, "eval_bits_per_byte")[-1] > 0
    assert lineage.finite_values(log, "nothing") == []
    assert lineage.read_log_history(run.root / "corpus") == []


def test_read_test_scores_only_of_the_model_that_was_evaluated(run, tmp_path):
    assert lineage.read_test_scores(run.root / "base")["loss"] == 4.2
    root = shutil.copytree(run.root, tmp_path / "again")
    manifest = json.loads((root / "base" / "manifest.json").read_text())
    (root / "base" / "manifest.json").write_text(json.dumps({**manifest, "digest": "other"}))
    assert lineage.read_test_scores(root / "base") is None
    assert lineage.read_test_scores(root / "corpus") is None

"""What is uploaded says nothing about the machine it comes from."""

import json
from pathlib import Path

import pytest

from hf_llm.core.manifest import MANIFEST_FILE, current_digest, file_digest, read_manifest, write_json, write_manifest
from hf_llm.training.public_copy import hide_paths, make_public_copy


@pytest.mark.parametrize(
    ("text", "public"),
    [
        ("/home/ada/private/chats.jsonl", "chats.jsonl"),
        ("~/private/chats.jsonl", "chats.jsonl"),
        ("C:\\Users\\ada\\chats.jsonl", "chats.jsonl"),
        ("rows of /home/ada/x.jsonl, and /data/y/", "rows of x.jsonl, and y"),
        ("`/home/ada/x`", "`x`"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("hf://datasets/a/b", "hf://datasets/a/b"),
        ("org/model", "org/model"),
        ("3 tokens/s, 1/2, and/or", "3 tokens/s, 1/2, and/or"),
        ("</s>", "</s>"),
        ("mlp/up_proj", "mlp/up_proj"),
    ],
)
def test_of_a_path_only_the_last_part_is_left_and_what_is_no_path_stays(text, public):
    assert hide_paths({"key": [text]}) == {"key": [public]}


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A finished model with an adapter, made of local files, in a working folder of its own."""
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "runs/secret-project/base"
    base.mkdir(parents=True)
    write_manifest(base, folder="base", facts={"arguments": {}})
    folder = tmp_path / "runs/secret-project/sft"
    (folder / "adapter").mkdir(parents=True)
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "chats.jsonl").write_text("x")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text(json.dumps({"vocab": {"/usr/local/bin": 1}}))
    (folder / "config.json").write_text('{"hidden_size": 8}')
    (folder / "adapter/adapter_config.json").write_text('{"base_model_name_or_path": "runs/secret-project/base"}')
    (folder / "adapter/README.md").write_text(
        "base_model: runs/secret-project/base\nadapter:runs/secret-project/base\n"
    )
    (folder / "README.md").write_text(f"from {tmp_path}/private/chats.jsonl\n")
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-2/optimizer.pt").write_bytes(b"x")
    (folder / "begun.json").write_text("{}")
    write_manifest(
        folder,
        folder="sft",
        settings={"sft.data": [{"path": "private/chats.jsonl", "license": "mit"}]},
        facts={"arguments": {"output_dir": str(folder), "hub_model_id": "ada/tiny"}},
    )
    return folder


def test_a_copy_has_no_local_path_and_its_manifest_fits_it(model, tmp_path):
    copy = make_public_copy(model, ["checkpoint-*", "begun.json"])
    public = Path(copy.name)
    names = {path.relative_to(public).as_posix() for path in public.rglob("*") if path.is_file()}
    assert names == {
        *("README.md", "adapter/README.md", "adapter/adapter_config.json", "config.json", "manifest.json"),
        *("model.safetensors", "tokenizer.json"),
    }
    for name in names - {"tokenizer.json"}:
        text = (public / name).read_text()
        assert str(tmp_path) not in text and "runs/secret" not in text and "private" not in text, name
    assert json.loads((public / "adapter/adapter_config.json").read_text()) == {
        "base_model_name_or_path": "secret-project-base"
    }
    manifest = read_manifest(public)
    assert manifest["settings"]["sft.data"] == [{"path": "chats.jsonl", "license": "mit"}]
    assert manifest["facts"]["arguments"] == {"output_dir": "sft", "hub_model_id": "ada/tiny"}
    for name, (size, digest) in manifest["files"].items():
        assert (size, digest) == ((public / name).stat().st_size, file_digest(public / name))
    assert (public / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert current_digest(model) == read_manifest(model)["digest"]  # the folder itself is as it was
    copy.cleanup()
    assert not public.exists() and (model / "model.safetensors").exists()


def test_the_base_of_an_adapter_is_named_by_the_hub_where_it_was_pushed(model):
    base = model.parent / "base"
    manifest = read_manifest(base)
    write_json(
        base / MANIFEST_FILE,
        {**manifest, "facts": {"arguments": {"push_to_hub": True, "hub_model_id": "ada/tiny-base"}}},
    )
    copy = make_public_copy(model, [])
    assert "ada/tiny-base" in (Path(copy.name) / "adapter/adapter_config.json").read_text()
    assert (Path(copy.name) / "adapter/README.md").read_text() == "base_model: ada/tiny-base\nadapter:ada/tiny-base\n"
    copy.cleanup()

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from hf_llm import prepare_data, train_tokenizer
from hf_llm.data import corpus as corpus_module
from hf_llm.data.corpus import corpus_texts
from hf_llm.data.windows import TokenWindows
from hf_llm.manifest import file_digests, read_manifest
from hf_llm.tokenize_corpus import main

KILLING = Path(__file__).parent / "data" / "killing.py"
ARGV = ["tiny.yaml", "--tokenizer.vocab_size=320"]
CORPUS, TOKENS = Path("runs/tiny/corpus"), Path("runs/tiny/tokens")


@pytest.fixture(autouse=True)
def inside(tiny_inputs, monkeypatch):
    """A folder with a corpus of several shards and its tokenizer."""
    monkeypatch.chdir(tiny_inputs)
    monkeypatch.setattr("hf_llm.data.pipeline.cores", lambda: 1)
    monkeypatch.setattr(corpus_module, "SHARD_BYTES", 20_000)
    prepare_data.main(["tiny.yaml"])
    train_tokenizer.main(ARGV)
    return tiny_inputs


def test_the_shards_hold_the_corpus_with_an_end_after_every_document(capsys):
    main(ARGV)
    tokenizer = AutoTokenizer.from_pretrained("runs/tiny/tokenizer")
    index = json.loads((TOKENS / "index.json").read_text())
    assert index["dtype"] == "uint16" and index["eos_token_id"] == tokenizer.eos_token_id
    for split in ("train", "validation", "test"):
        texts = list(corpus_texts(CORPUS, split))
        ids = np.concatenate([np.fromfile(TOKENS / shard["file"], np.uint16) for shard in index["splits"][split]])
        expected = [i for text in texts for i in [*tokenizer.encode(text), tokenizer.eos_token_id]]
        assert ids.tolist() == expected
        assert sum(shard["bytes"] for shard in index["splits"][split]) == sum(len(text.encode()) for text in texts)
        assert TokenWindows(TOKENS, split, 50).tokens == len(expected)
    assert len(index["splits"]["train"]) > 2
    facts = read_manifest(TOKENS)["facts"]["splits"]
    assert read_manifest(TOKENS)["headline"].startswith(f"train {facts['train']['tokens']:,}, validation ")


def test_a_budget_of_tokens_bounds_training_only(inside):
    argv = [*ARGV, "--corpus.max_tokens=2000", "--name=small"]
    prepare_data.main(argv)
    train_tokenizer.main(argv)
    main(argv)
    splits = read_manifest(Path("runs/small/tokens"))["facts"]["splits"]
    assert 2000 <= splits["train"]["tokens"] < 2000 + 200
    main(ARGV)
    whole = read_manifest(TOKENS)["facts"]["splits"]
    assert whole["train"]["tokens"] > 4000 and whole["validation"] == splits["validation"]


def test_shards_killed_at_every_write_have_the_same_bytes(inside):
    command = [sys.executable, str(KILLING), "hf_llm.tokenize_corpus", *ARGV]
    done = subprocess.run(command, capture_output=True, text=True, cwd=inside)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.rpartition("lives: ")[2]) > 5
    killed = file_digests(TOKENS)
    TOKENS.rename("runs/tiny/killed")
    main(ARGV)
    assert file_digests(TOKENS) == killed


def test_shards_of_another_tokenizer_are_refused(capsys):
    main(ARGV)
    manifest = json.loads(Path("runs/tiny/tokenizer/manifest.json").read_text())
    manifest["digest"] = "another"
    Path("runs/tiny/tokenizer/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SystemExit):
        main(ARGV)
    assert "runs/tiny/tokens was made from another tokenizer" in capsys.readouterr().err

import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from hf_llm import prepare_data, train_tokenizer
from hf_llm.core.manifest import file_digests, read_manifest
from hf_llm.data.corpus import build as corpus_module
from hf_llm.data.corpus.corpus_files import read_corpus_texts
from hf_llm.data.tokens.token_dataset import TokenWindows
from hf_llm.tokenize_corpus import main
from tests.fork_server import environment, python

ARGV = ["tiny.yaml", "--tokenizer.vocab_size=320"]
CORPUS, TOKENS = Path("runs/tiny/corpus"), Path("runs/tiny/tokens")


@pytest.fixture(autouse=True)
def inside(tiny_inputs, monkeypatch):
    """A folder with a corpus of several shards and its tokenizer."""
    monkeypatch.chdir(tiny_inputs)
    monkeypatch.setattr("hf_llm.data.corpus.task_runner.count_cores", lambda: 1)
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
        texts = list(read_corpus_texts(CORPUS, split))
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
    command = [python(), "-m", "tests.data.corpus.killing", "hf_llm.tokenize_corpus", *ARGV]
    done = subprocess.run(command, capture_output=True, text=True, cwd=inside, env=environment())
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.rpartition("lives: ")[2]) > 5
    killed = file_digests(TOKENS)
    TOKENS.rename("runs/tiny/killed")
    main(ARGV)
    assert file_digests(TOKENS) == killed


@pytest.fixture
def mixed(inside):
    """The same folder with two sources of different size, `texts` and `poems`, and their corpus and tokenizer."""
    Path("poems").mkdir()
    for number in range(60):
        text = f"Roses are red, violet {number} is blue. " * (1 + number % 7)
        Path(f"poems/{number}.txt").write_text(text)
    sources = "[{path: texts, license: cc0-1.0}, {path: poems, license: mit}]"
    argv = [*ARGV, f"--corpus.sources={sources}", "--name=mixed"]
    prepare_data.main(argv)
    return argv


def test_a_mix_stores_each_source_once_and_serves_the_shares(mixed, capsys):
    argv = [*mixed, "--corpus.shares={texts: 60, poems: 20}", "--corpus.max_epochs=3"]
    train_tokenizer.main(argv)
    capsys.readouterr()
    main(argv)
    table = capsys.readouterr().out
    assert "share asked" in table and "75.0%" in table and "25.0%" in table
    folder = Path("runs/mixed/tokens")
    facts, index = (read_manifest(folder)["facts"], json.loads((folder / "index.json").read_text()))
    available = facts["tokens_by_source"]["train"]
    assert sum(available.values()) == facts["splits"]["train"]["tokens"]
    for shard in index["splits"]["train"]:
        assert shard["sources"] == {shard["source"]: shard["tokens"]}
    windows = TokenWindows(folder, "train", 32, seed=1)
    assert abs(len(windows) * 32 - sum(available.values())) < 3 * 32
    words = [AutoTokenizer.from_pretrained("runs/mixed/tokenizer").decode(item["input_ids"]) for item in windows]
    share = sum("violet" in text or "Roses" in text for text in words) / len(words)
    assert 0.22 < share < 0.29 and facts["mix"][1]["share"] == pytest.approx(0.25, abs=0.01)
    assert 1 < facts["mix"][1]["epochs"] <= 3


@pytest.mark.parametrize("by", ["difficulty", "length", "source"])
def test_a_curriculum_orders_the_windows_in_stages(mixed, by):
    argv = [*mixed, f"--corpus.curriculum={{by: {by}, stages: 3}}"]
    train_tokenizer.main(argv)
    main(argv)
    folder = Path("runs/mixed/tokens")
    shards = json.loads((folder / "index.json").read_text())["splits"]["train"]
    windows = TokenWindows(folder, "train", 16)
    assert windows.has_stages and len({shard["stage"] for shard in shards}) == (2 if by == "source" else 3)
    available = read_manifest(folder)["facts"]["tokens_by_source"]["train"]
    assert sum(shard["tokens"] for shard in shards) == sum(available.values())
    lengths = {}
    for shard in shards:
        ids = np.fromfile(folder / shard["file"], np.uint16)
        lengths.setdefault(shard["stage"], []).extend(np.diff(np.flatnonzero(ids == 1), prepend=-1).tolist())
    if by == "length":
        assert max(lengths[0]) <= min(lengths[1]) and max(lengths[1]) <= min(lengths[2])
    if by == "source":
        assert {shard["stage"]: shard["source"] for shard in shards} == {0: "texts", 1: "poems"}


STAGES = "[{share: 0.75, shares: {texts: 4, poems: 1}}, {share: 0.25, shares: {poems: 1}}]"


def test_a_curriculum_by_mix_ends_with_the_tokens_of_its_last_stage(mixed, capsys):
    argv = [*mixed, f"--corpus.curriculum={{by: mix, stages: {STAGES}}}", "--corpus.max_tokens=6000"]
    train_tokenizer.main(argv)
    capsys.readouterr()
    main(argv)
    assert "  stage 2\n" in capsys.readouterr().out
    folder = Path("runs/mixed/tokens")
    windows = TokenWindows(folder, "train", 16)
    shards = json.loads((folder / "index.json").read_text())["splits"]["train"]
    poems = b"".join((folder / shard["file"]).read_bytes() for shard in shards if shard["source"] == "poems")
    poems = np.frombuffer(poems * 2, np.uint16)
    inside = np.lib.stride_tricks.sliding_window_view(poems, 16)
    is_poem = [bool((inside == item["input_ids"].numpy()).all(axis=1).any()) for item in windows]
    assert windows.has_stages and abs(windows.last_stage_start * 16 - 4500) <= 2 * 16
    assert all(is_poem[windows.last_stage_start :])
    assert np.mean(is_poem[: windows.last_stage_start]) == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("[{share: 1, shares: {texts: 1}}]", r"(?s)taken together, and the sources.*sources: poems, texts"),
        ("[{share: 1, shares: {texts: 1, poems: 0}}]", r"stages\[0\].shares: poems: 0.0; a share has to be positive"),
    ],
)
def test_the_shares_of_the_stages_name_every_source(mixed, stages, message, capsys):
    argv = [*mixed, f"--corpus.curriculum={{by: mix, stages: {stages}}}"]
    train_tokenizer.main(argv)
    with pytest.raises(SystemExit):
        main(argv)
    assert re.search(message, capsys.readouterr().err)


def test_a_mix_in_stages_killed_at_every_write_has_the_same_bytes(mixed, inside):
    argv = [*mixed, "--corpus.shares={texts: 2, poems: 1}", "--corpus.curriculum={by: difficulty, stages: 2}"]
    train_tokenizer.main(argv)
    command = [python(), "-m", "tests.data.corpus.killing", "hf_llm.tokenize_corpus", *argv]
    done = subprocess.run(command, capture_output=True, text=True, cwd=inside, env=environment())
    assert done.returncode == 0, done.stdout + done.stderr
    tokens = Path("runs/mixed/tokens")
    killed = file_digests(tokens)
    tokens.rename("runs/mixed/killed")
    main(argv)
    assert file_digests(tokens) == killed


def test_shards_of_another_tokenizer_are_refused(capsys):
    main(ARGV)
    manifest = json.loads(Path("runs/tiny/tokenizer/manifest.json").read_text())
    manifest["digest"] = "another"
    Path("runs/tiny/tokenizer/manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(SystemExit):
        main(ARGV)
    assert "runs/tiny/tokens: inputs changed: tokenizer" in capsys.readouterr().err

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hf_llm import prepare_data
from hf_llm.manifest import file_digests, read_manifest
from hf_llm.train_tokenizer import main

KILLING = Path(__file__).parent / "data" / "killing.py"


ARGV = ["tiny.yaml", "--tokenizer.vocab_size=320"]


@pytest.fixture(autouse=True)
def inside(tiny_inputs, monkeypatch):
    monkeypatch.chdir(tiny_inputs)
    monkeypatch.setattr("hf_llm.data.pipeline.cores", lambda: 1)
    return tiny_inputs


def test_the_tokenizer_of_a_corpus(capsys):
    prepare_data.main(["tiny.yaml"])
    main(ARGV)
    folder = Path("runs/tiny/tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 320 and tokenizer.model_max_length == 128
    manifest = read_manifest(folder)
    assert manifest["headline"].startswith("320 tokens, ") and manifest["headline"].endswith("bytes per token")
    assert manifest["licenses"] == ["cc0-1.0"]
    assert manifest["inputs"]["corpus"] == read_manifest(Path("runs/tiny/corpus"))["digest"]
    validation = read_manifest(Path("runs/tiny/corpus"))["facts"]["ledger"]["splits"]["validation"]
    report = manifest["facts"]["report"]
    assert (report["documents"], report["bytes"]) == (validation["documents"], validation["bytes"])
    assert report["bytes_per_token"] > 2
    assert "digits: '2024' is '2' '0' '2' '4'" in capsys.readouterr().out


def test_a_vocabulary_too_large_is_an_error_and_the_remedy_works(capsys):
    prepare_data.main(["tiny.yaml"])
    with pytest.raises(SystemExit) as exit:
        main(["tiny.yaml", "--tokenizer.vocab_size=32768"])
    error = capsys.readouterr().err
    assert exit.value.code == 2 and "too small for a vocabulary of 32,768" in error
    largest = error.partition("tokenizer.vocab_size=")[2].split()[0]
    main(["tiny.yaml", f"--tokenizer.vocab_size={largest}"])
    assert read_manifest(Path("runs/tiny/tokenizer"))["headline"].startswith(f"{int(largest):,} tokens")


def test_an_existing_tokenizer_is_taken_over(tmp_path):
    prepare_data.main(["tiny.yaml"])
    main(ARGV)
    Path("runs/tiny/tokenizer").rename("mine")
    main(["tiny.yaml", "--tokenizer.use=mine"])
    taken = AutoTokenizer.from_pretrained("runs/tiny/tokenizer")
    assert taken.get_vocab() == AutoTokenizer.from_pretrained("mine").get_vocab()


def test_a_tokenizer_killed_before_its_end_has_the_same_bytes(inside):
    prepare_data.main(["tiny.yaml"])
    command = [sys.executable, str(KILLING), "hf_llm.train_tokenizer", *ARGV]
    done = subprocess.run(command, capture_output=True, text=True, cwd=inside)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.rpartition("lives: ")[2]) == 3
    killed = file_digests(Path("runs/tiny/tokenizer"))
    for file in Path("runs/tiny/tokenizer").iterdir():
        file.write_text(file.read_text()[:50] if file.name != "manifest.json" else "{}")
    Path("runs/tiny/tokenizer/manifest.json").unlink()
    main(ARGV)
    assert file_digests(Path("runs/tiny/tokenizer")) == killed

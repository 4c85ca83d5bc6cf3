import subprocess
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hf_llm import prepare_data
from hf_llm.core.manifest import file_digests, read_manifest
from hf_llm.data.corpus.corpus_files import list_corpus_files
from hf_llm.data.tokens.mixing import sample_texts
from hf_llm.train_tokenizer import load_compared_tokenizers, main
from tests import made_up_texts
from tests.fork_server import environment, python

ARGV = ["tiny.yaml", "--tokenizer.vocab_size=320"]


@pytest.fixture(autouse=True)
def inside(tiny_inputs, monkeypatch):
    monkeypatch.chdir(tiny_inputs)
    monkeypatch.setattr("hf_llm.data.corpus.task_runner.count_cores", lambda: 1)
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


def test_the_report_tells_sources_apart_and_compares(capsys):
    prepare_data.main(["tiny.yaml"])
    main(ARGV)
    Path("runs/tiny/tokenizer").rename("mine")
    Path("own").mkdir()
    Path("own/a.txt").write_text("\n".join(made_up_texts.texts()))
    main(["tiny.yaml", "--tokenizer.vocab_size=384", "--tokenizer.compare=[mine]", "--tokenizer.data=[own]"])
    report = read_manifest(Path("runs/tiny/tokenizer"))["facts"]["report"]
    assert [(row["tokenizer"], row["vocab_size"]) for row in report["tokenizers"]] == [("this run", 384), ("mine", 320)]
    assert all(row["differ"] == 0 and 0 <= row["unused_share"] < 1 for row in report["tokenizers"])
    assert report["by_source"][0]["source"] == "texts"
    assert report["by_source"][0]["mine"] > report["by_source"][0]["this run"] > 1
    assert "source texts: this run" in capsys.readouterr().out


def test_gpt2_is_left_out_where_it_is_not_at_hand(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_compared_tokenizers(None) == {}


def test_shares_divide_the_sample_and_have_to_name_the_sources(capsys):
    Path("poems").mkdir()
    for number in range(80):
        Path(f"poems/{number}.txt").write_text(f"Zebrazoo quux {number} mumble. " * 6)
    argv = [*ARGV, "--corpus.sources=[{path: texts, license: cc0-1.0}, {path: poems, license: mit}]"]
    prepare_data.main(argv)
    files = list_corpus_files(Path("runs/tiny/corpus"), "train")
    texts = list(sample_texts(files, {"texts": 3, "poems": 1}, 8000))
    sizes = [sum(len(text) for text in texts if ("quux" in text) == poems) for poems in (False, True)]
    assert 6000 <= sizes[0] < 6600 and 2000 <= sizes[1] < 2300
    assert texts == list(sample_texts(files, {"texts": 3, "poems": 1}, 8000))
    with pytest.raises(SystemExit):
        main([*argv, "--corpus.shares={texts: 1, prose: 1}"])
    assert "sources: poems, texts" in capsys.readouterr().err
    main([*argv, "--corpus.shares={texts: 1, poems: 1}"])


def test_a_tokenizer_may_learn_from_texts_of_its_own(capsys):
    Path("own").mkdir()
    Path("own/a.txt").write_text("\n".join(made_up_texts.texts()))
    Path("own/b.jsonl").write_text('{"text": "' + "wombat bilby dugong " * 3000 + '"}\n')
    Path("own/photo.jpg").write_bytes(b"\xff\xd8")
    prepare_data.main(["tiny.yaml"])
    main([*ARGV, "--tokenizer.data=[own]"])
    assert "tokenizer.data: 1 left out: 1 kind that is not read: .jpg" in capsys.readouterr().out
    tokenizer = AutoTokenizer.from_pretrained("runs/tiny/tokenizer")
    words = set(tokenizer.get_vocab())
    assert any("bilb" in word for word in words) and any("rine" in word for word in words)
    assert "Ġfox" not in words and "Ġthe" not in words


def test_a_unigram_tokenizer_of_a_corpus():
    pytest.importorskip("sentencepiece")
    prepare_data.main(["tiny.yaml"])
    main(["tiny.yaml", "--tokenizer.vocab_size=384", "--tokenizer.algorithm=unigram"])
    tokenizer = AutoTokenizer.from_pretrained("runs/tiny/tokenizer")
    assert len(tokenizer) == 384 and tokenizer.decode(tokenizer.encode("The red fox\n  sees")) == "The red fox\n  sees"
    assert read_manifest(Path("runs/tiny/tokenizer"))["facts"]["report"]["tokenizers"][0]["differ"] == 0


def test_a_tokenizer_killed_before_its_end_has_the_same_bytes(inside):
    prepare_data.main(["tiny.yaml"])
    command = [python(), "-m", "tests.data.corpus.killing", "hf_llm.train_tokenizer", *ARGV]
    done = subprocess.run(command, capture_output=True, text=True, cwd=inside, env=environment())
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.rpartition("lives: ")[2]) >= 3  # killed as it begins, and as it writes the manifest
    killed = file_digests(Path("runs/tiny/tokenizer"))
    for file in Path("runs/tiny/tokenizer").iterdir():
        file.write_text(file.read_text()[:50] if file.name != "manifest.json" else "{}")
    Path("runs/tiny/tokenizer/manifest.json").unlink()
    main(ARGV)
    assert file_digests(Path("runs/tiny/tokenizer")) == killed


def test_texts_of_ones_own_are_sampled_from_all_places(capsys):
    """The sample is a tenth of the files: without words of the last file and of a file's end, it was read in order."""
    Path("own").mkdir()
    first = [f"wombat bilby dugong {number}" for number in range(20_000)]
    Path("own/a.txt").write_text("\n".join(first) + "\n" + "kookaburra platypus galah\n" * 10_000)
    Path("own/b.jsonl").write_text('{"text": "' + "quokka numbat echidna " * 20_000 + '"}\n')
    prepare_data.main(["tiny.yaml"])
    main([*ARGV, "--tokenizer.data=[own]", "--tokenizer.sample_bytes=100_000"])
    vocabulary = AutoTokenizer.from_pretrained("runs/tiny/tokenizer").get_vocab()
    for word in ("wombat", "kookaburra", "quokka"):
        assert any(len(token) >= 4 and token.strip("Ġ") in word for token in vocabulary), word
    assert "tokenizer.data: trained on 0.1 MB of 1.2 MB, drawn evenly from all files" in capsys.readouterr().out

import json
import os
import subprocess
from pathlib import Path

import pytest

from hf_llm.core.manifest import file_digests, read_manifest
from hf_llm.prepare_data import main
from tests.fork_server import environment, python


@pytest.fixture(autouse=True)
def inside(tiny_inputs, monkeypatch):
    monkeypatch.chdir(tiny_inputs)
    monkeypatch.setattr("hf_llm.data.corpus.task_runner.count_cores", lambda: 1)
    return tiny_inputs


def fails(capsys, *argv):
    """The error that the stage ends with."""
    with pytest.raises(SystemExit) as exit:
        main(["tiny.yaml", *argv])
    assert exit.value.code == 2
    return capsys.readouterr().err


def test_a_corpus_is_made_once(capsys):
    main(["tiny.yaml"])
    output = capsys.readouterr().out
    assert (
        "texts: read 400 > normalise 400 > length 400 > exact_duplicates 400 > near_duplicates 400 documents" in output
    )
    manifest = read_manifest(Path("runs/tiny/corpus"))
    assert "texts: 400 files and records were there: 400 used" in output
    assert manifest["headline"].startswith("400 documents, ") and manifest["licenses"] == ["cc0-1.0"]
    splits = manifest["facts"]["ledger"]["splits"]
    assert sum(counts["documents"] for counts in splits.values()) == 400
    assert not Path("runs/tiny/corpus/work").exists()
    main(["tiny.yaml"])
    assert "runs/tiny/corpus is complete" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ("[{path: nowhere, license: mit}]", "corpus.sources[0]: nowhere does not exist"),
        ("[{path: texts}]", "corpus.sources[0].license: missing"),
        ("[{path: texts, licence: mit}]", "no such key; did you mean license?"),
        (
            "[{path: texts, hub: a/b, license: mit}]",
            "exactly one of `path`, `hub`, `git`, `crawl`, `installed` and `synthetic`",
        ),
        ("[]", "sources is empty"),
        ("[{path: empty.txt, license: mit}]", "the corpus has 0 documents"),
        ("[{path: chats.jsonl, license: mit}]", "chats.jsonl, line 1 has no column 'text'; it has messages"),
        ("[{path: latin.txt, license: mit}]", "not UTF-8"),
        ("[{path: binary.txt, license: mit}]", "binary"),
        ("[{hub: a/b, license: mit}]", "the Hub data set a/b train cannot be read"),
    ],
)
def test_a_wrong_source_is_named_and_the_next_try_is_free(sources, message, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    Path("empty.txt").write_text("")
    Path("latin.txt").write_bytes(bytes(range(128, 256)) * 30)  # in no encoding a text
    Path("binary.txt").write_bytes(b"\x7fELF\0\0\0")
    assert message in fails(capsys, f"--corpus.sources={sources}")
    assert read_manifest(Path("runs/tiny/corpus")) is None
    main(["tiny.yaml"])
    assert read_manifest(Path("runs/tiny/corpus"))


def test_an_unknown_licence_is_said_aloud(capsys):
    main(["tiny.yaml", "--corpus.sources=[{path: texts, license: unknown}]"])
    assert "licence is unknown" in capsys.readouterr().out


def test_what_is_not_read_is_said_with_its_reason(capsys):
    Path("texts/picture.png").write_bytes(b"x")
    Path("texts/.notes.txt").write_text("notes")
    Path("texts/empty.txt").write_text("")
    Path("texts/rows.jsonl").write_text('{"text": null}\n' * 300 + json.dumps({"text": "word " * 30}) + "\n{\n")
    main(["tiny.yaml"])
    output = capsys.readouterr().out
    assert "texts: 705 files and records were there: 401 used, 303 left out, 1 unreadable" in output
    assert "texts: left out: 301 no text, 1 hidden, 1 kind that is not read: .png" in output
    assert "unreadable, dropped: 1 malformed JSON" in output


def test_other_settings_are_refused_once_there_is_a_corpus(capsys):
    main(["tiny.yaml"])
    assert "corpus.min_chars: was 20, is 30" in fails(capsys, "--corpus.min_chars=30")


def test_a_corpus_killed_at_every_write_has_the_same_bytes(inside):
    for name in ("a", "b", "c"):
        rows = [json.dumps({"text": f"{name}: a document with the number {i // 2}"}) for i in range(60)]
        Path(f"{name}.jsonl").write_text("\n".join(rows))
    sources = "--corpus.sources=[{path: texts, license: mit}, " + ", ".join(
        f"{{path: {name}.jsonl, license: mit}}" for name in ("a", "b", "c")
    )
    settings = [sources + "]", "--corpus.deduplicate.substring={words: 6}"]
    killing = [python(), "-m", "tests.data.corpus.killing"]
    command = [*killing, "hf_llm.prepare_data", "tiny.yaml", *settings, "--name=killed"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=inside, env=environment())
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.rpartition("lives: ")[2]) > 12
    main(["tiny.yaml", *settings])
    assert read_manifest(Path("runs/tiny/corpus"))["facts"]["ledger"]["cut_characters"] > 0
    assert file_digests(Path("runs/killed/corpus")) == file_digests(Path("runs/tiny/corpus"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting a small disk takes root")
def test_a_disk_that_fills_up_is_told_and_what_was_done_is_kept(inside, capfd):
    disk = inside / "runs"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=140k", "tmpfs", disk], check=True)
    try:
        assert "no space left on the disk" in fails_on(capfd)
        subprocess.run(["mount", "-o", "remount,size=50m", disk], check=True)
        main(["tiny.yaml"])
        digests = file_digests(disk / "tiny" / "corpus")
    finally:
        subprocess.run(["umount", disk], check=True)
    main(["tiny.yaml"])
    assert file_digests(disk / "tiny" / "corpus") == digests


def fails_on(capfd):
    with pytest.raises(SystemExit) as exit:
        main(["tiny.yaml"])
    assert exit.value.code == 2
    return capfd.readouterr().err


def test_what_became_of_a_document_is_told(capsys):
    rows = [{"text": f"a document with the number {i}", "url": f"https://example.org/{i}"} for i in range(50)]
    rows += [{"text": "short", "url": "https://example.org/short"}, {**rows[7], "url": "https://example.org/copy"}]
    Path("a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    argv = ["--corpus.sources=[{path: texts, license: mit}, {path: a.jsonl, license: cc0-1.0}]"]
    assert "is not complete" in fails(capsys, *argv, "--explain=https://example.org/7")
    main(["tiny.yaml", *argv])
    capsys.readouterr()

    def told(wanted):
        main(["tiny.yaml", *argv, "--explain", wanted])
        return capsys.readouterr().out

    story = told("https://example.org/7")
    assert "kept, in " in story and "source a.jsonl, licence cc0-1.0" in story
    assert "kept instead of" in story and "(duplicate) of a.jsonl https://example.org/copy" in story
    assert "dropped by length, too_short" in told("https://example.org/short")
    copy = told("https://example.org/copy")
    assert "dropped by exact_duplicates, duplicate" in copy
    assert "the same text is kept from source a.jsonl  https://example.org/7  " in copy
    kept = copy.rpartition("kept in its place: ")[2].strip()
    assert told(kept[:12]).startswith(kept)
    assert "0007.txt" in told("0007.txt")
    for path in ("texts/0007.txt", "./texts/0007.txt", str(Path("texts/0007.txt").absolute())):
        assert told(path) == told("0007.txt")
    Path("texts/picture.png").write_bytes(b"x")
    assert "left out of source texts: kind that is not read: .png" in told("texts/picture.png")
    assert "has no document 'nowhere'" in fails(capsys, *argv, "--explain=nowhere")


@pytest.mark.slow
def test_the_documentation_on_this_disk_makes_a_corpus(inside, monkeypatch):
    monkeypatch.undo()
    monkeypatch.chdir(inside)
    main(
        [
            "tiny.yaml",
            "--corpus.sources=[{installed: [language_reference, standard_library, packages], license: psf-2.0}]",
        ]
    )
    ledger = read_manifest(Path("runs/tiny/corpus"))["facts"]["ledger"]
    assert set(ledger["sources"]) == {"language_reference", "standard_library", "packages"}
    size = sum(counts["bytes"] for counts in ledger["splits"].values())
    assert 10e6 < size < 40e6
    assert sum(counts["documents"] for counts in ledger["splits"].values()) > 3000


def test_where_the_tasks_run_and_what_is_mixed_later_change_no_corpus(capsys):
    main(["tiny.yaml"])
    main(["tiny.yaml", "--corpus.cluster.workers=1", "--corpus.max_tokens=5000", "--corpus.shares={texts: 1}"])
    assert "runs/tiny/corpus is complete" in capsys.readouterr().out

"""The sums of the ledger: every file and record that is there is used, left out by kind, or unreadable."""

import gzip
import io
import json
import os
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from hf_llm.core.errors import UserError
from hf_llm.data.corpus.build import make_corpus
from hf_llm.data.corpus.config import Corpus, Deduplicate, Rules, Source
from hf_llm.data.corpus.filters.gopher_quality import GopherQuality
from hf_llm.data.corpus.reader_step import SourceReader
from hf_llm.data.corpus.sources import list_read_tasks
from hf_llm.data.files.read_errors import UNEXPLAINED, ReadErrors, describe_input

DATA = os.environ.get("HF_LLM_DATA", "")
CASES = Path(DATA).parent / "cases"
PROSE = "A sentence of plain prose about a river and the people who live beside it. " * 5


def count_source(**keys) -> tuple[ReadErrors, int]:
    """Read a source as the first pass does. Returns what was counted, and the number of documents."""
    tasks = list_read_tasks([Source(license="unknown", **keys)])
    total = ReadErrors()
    documents = 0
    for rank, task in enumerate(tasks):
        step = SourceReader(tasks, max_chars=20_000)
        documents += sum(1 for _ in step.run(None, rank, len(tasks)))
        total.add(task.listing)
        total.add(step.faults)
    return total, documents


def check_sums(errors: ReadErrors) -> None:
    assert errors.records == errors.counted
    assert errors.left_out[UNEXPLAINED] == 0


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def zip_bytes(files: dict[str, str | bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def tar_gz_bytes(files: dict[str, str | bytes]) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for name, data in files.items():
            data = data if isinstance(data, bytes) else data.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def json_lines(*rows: object) -> str:
    return "\n".join(json.dumps(row) for row in rows) + "\n"


def test_a_folder_of_one_of_each_kind_adds_up(tmp_path):
    files = {
        "a.txt": PROSE, "long.md": "\n\n".join([PROSE] * 200), "empty.txt": "", "blank.txt": " \n\n",
        "zeros.txt": b"a\0b", ".hidden.txt": PROSE, ".cache/a.txt": PROSE, "picture.png": b"x", "letter.odt": b"x",
        "README": PROSE, "volume.001": b"x", "node_modules/x/README.md": PROSE, "dataset_info.json": "{}",
        "rows.jsonl": json_lines({"text": PROSE}, {"text": None}, {"text": " "}, {"text": 5}, [1], {"text": PROSE}),
        "rows.csv": f'id,text\n1,"{PROSE}"\n2,\n3,a,b\n',
        "texts.zip": zip_bytes({
            "a.txt": PROSE, "b/.c.txt": PROSE, "d.png": b"x", "inner.zip": zip_bytes({"a.txt": PROSE}), "e.txt": "",
            "../out.txt": PROSE, "f.jsonl": json_lines({"text": PROSE}, {"text": None}),
        }),
        "empty.zip": zip_bytes({}),
        "broken.txt.gz": gzip.compress(PROSE.encode() * 9)[:-20],
        "page.html": f"<html><body><p>{PROSE}</p></body></html>", "nothing.html": "<html></html>",
        "feed.xml": "<rss><item>news</item></rss>",
        "tool.py": "x = 1\n", "_pb2.py": "x = 2\n", "build/made.js": "x = 3\n",
    }  # fmt: skip
    folder = write(tmp_path / "all", files)
    (folder / "broken_link").symlink_to(tmp_path / "nowhere")
    (folder / "again").symlink_to(folder)

    errors, documents = count_source(path=str(folder))
    check_sums(errors)
    assert errors.left_out == {
        "no text": 8,  # empty.txt, blank.txt, two of rows.jsonl, one of rows.csv, e.txt, f.jsonl, nothing.html
        "hidden": 3,
        "kind that is not read: .png": 2,
        "kind that is not read: .odt": 1,
        "kind that is not read: no suffix": 2,
        "installed package": 1,
        "description of a data set": 1,
        "archive within an archive": 1,
        "name that leads out of the archive": 1,
        "archive without files": 1,
        "file without mediawiki": 1,
        "broken link": 1,
        "link to a folder that is read already": 1,
        "vendored or built": 1,
        "generated": 1,
        "code beside data": 1,
    }
    assert errors.dropped == {
        "binary": 1, "text is no text": 1, "no JSON object": 1, "wrong number of columns": 1, "damaged file": 1,
    }  # fmt: skip
    # a.txt, long.md, two rows, a row, a.txt and a row of the zip, broken.txt.gz up to its damage, page.html
    assert errors.used in (8, 9) and documents > errors.used


def test_a_folder_of_code_adds_up_and_git_counts_the_same(tmp_path):
    files = {
        "src/a.py": "x = 1\n", "src/empty.py": "", "src/made.py": "# Generated by protoc. DO NOT EDIT.\n",
        "app.min.js": "x", "build/b.py": "x = 2\n", "lib.js": "function(a){return a};" * 2000, "odd.py": b"x\0y",
        "README.md": PROSE, "docs/build/guide.md": PROSE, "LICENSE": "MIT", "logo.svg": "<svg/>", ".ci/x.py": "x = 3\n",
        "Makefile": "all:\n",
    }  # fmt: skip
    folder = write(tmp_path / "code", files)
    by_path, documents = count_source(path=str(folder))
    by_git, git_documents = count_source(git=str(folder))
    for errors in (by_path, by_git):
        check_sums(errors)
        assert errors.used == 3 and errors.records == len(files)
        for reason, count in {"generated": 2, "vendored or built": 1, "minified": 1, "binary": 1, "hidden": 1}.items():
            assert errors.left_out[reason] == count, reason
    assert documents == git_documents == 3


def test_the_pages_of_a_wiki_add_up(tmp_path):
    def page(title: str, text: str, extra: str = "<ns>0</ns>") -> str:
        return f"<page><title>{title}</title>{extra}<revision><text>{text}</text></revision></page>"

    pages = [
        page("A", PROSE), page("Talk:A", PROSE, "<ns>1</ns>"), page("User:B", PROSE, "<ns>2</ns>"),
        page("R", "x", '<ns>0</ns><redirect title="A"/>'), page("R2", "#REDIRECT [[A]]"), page("D", "{{disambig}}"),
        page("E", ""), page("S", "{{stub}}"), "<page><title>broken</titel></page>",
    ]  # fmt: skip
    write(tmp_path, {"wiki.xml": "<mediawiki>" + "".join(pages) + "</mediawiki>"})
    errors, documents = count_source(path=str(tmp_path / "wiki.xml"))
    check_sums(errors)
    assert (errors.records, errors.used, documents) == (9, 1, 1)
    assert errors.dropped == {"malformed XML": 1}
    assert errors.left_out == {
        "page of another namespace": 2, "redirect": 2, "disambiguation page": 1, "no text": 2,
    }  # fmt: skip


def test_posts_that_become_threads_add_up(tmp_path):
    rows = [
        {"id": "s", "title": "A title", "selftext": PROSE},
        {"id": "c", "link_id": "t3_s", "parent_id": "t3_s", "body": PROSE},
        {"id": "d", "link_id": "t3_s", "parent_id": "t3_s", "body": "[deleted]"},
        {"messages": [{"role": "user", "content": PROSE}]},
        {"messages": []},
        {"other": 1},
    ]
    write(tmp_path, {"reddit.jsonl": json_lines(*rows)})
    errors, documents = count_source(path=str(tmp_path / "reddit.jsonl"), format="discussions")
    check_sums(errors)
    assert (errors.records, errors.used, documents) == (6, 3, 2)
    assert errors.left_out == {"deleted, empty or repeated post": 1, "no text": 1}
    assert errors.dropped == {"no known form of a discussion": 1}

    posts = [
        '<row Id="1" PostTypeId="1" Title="Why?" Body="&lt;p&gt;Because of it.&lt;/p&gt;"/>',
        '<row Id="2" PostTypeId="2" ParentId="1" Body="&lt;p&gt;So it is.&lt;/p&gt;"/>',
        '<row Id="3" PostTypeId="2" ParentId="9" Body="&lt;p&gt;Lost.&lt;/p&gt;"/>',
        '<row Id="4" PostTypeId="5" Body="a tag"/>',
        '<row Id="5" PostTypeId="1" Title="Empty" Body=""/>',
    ]
    write(tmp_path, {"Posts.xml": f"<posts>{''.join(posts)}</posts>"})
    errors, documents = count_source(path=str(tmp_path / "Posts.xml"), format="discussions")
    check_sums(errors)
    assert (errors.records, errors.used, documents) == (5, 2, 1)
    assert errors.left_out == {
        "answer without its question": 1, "post that is neither question nor answer": 1, "no text": 1,
    }  # fmt: skip


def test_the_files_of_papers_add_up(tmp_path):
    main = "\\documentclass{article}\\begin{document}\\section{A}" + PROSE + "\\input{part}\\end{document}"
    paper = {"main.tex": main, "part.tex": PROSE, "figure.pdf": b"%PDF", "refs.bib": "@a{}"}
    write(tmp_path, {"paper.tar.gz": tar_gz_bytes(paper)})
    write(tmp_path, {"loose/main.tex": main, "loose/part.tex": PROSE, "loose/figure.pdf": b"%PDF"})
    errors, documents = count_source(path=str(tmp_path), format="latex")
    check_sums(errors)
    assert (errors.used, documents) == (2, 2)
    assert errors.left_out == {
        "file of a paper that is not LaTeX": 2, "part of another file's paper": 1, "kind that is not read: .pdf": 1,
    }  # fmt: skip


def test_documentation_on_this_disk_adds_up():
    errors, documents = count_source(installed=["language_reference", "standard_library"])
    check_sums(errors)
    assert errors.left_out["test, table or copy of a package"] > 100
    assert documents > errors.used > 500


def test_rows_of_a_data_set_add_up(tmp_path):
    write(tmp_path, {"set/train.jsonl": json_lines({"text": PROSE}, {"text": None}, {"text": ""}, {"text": PROSE})})
    errors, documents = count_source(hub=str(tmp_path / "set"))
    check_sums(errors)
    assert (errors.records, errors.used, documents) == (4, 2, 2)


def test_every_line_of_a_ledger_follows_from_the_line_before(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_llm.data.corpus.task_runner.count_cores", lambda: 1)
    rows = [{"text": f"{PROSE} {number}"} for number in range(60)]
    rows += [{"text": "short"}, {"text": None}, {"text": "1 2 3 " * 50}, rows[0]]
    write(tmp_path / "texts", {"rows.jsonl": json_lines(*rows), "picture.png": b"x", "notes.md": PROSE * 3000})
    (tmp_path / "corpus").mkdir()
    section = Corpus(
        sources=[Source(license="mit", path=str(tmp_path / "texts"))],
        rules=Rules(gopher_quality=GopherQuality()),
        deduplicate=Deduplicate(near=None),
    )
    ledger = make_corpus(section, tmp_path / "corpus", "")
    [entry] = ledger["sources"].values()

    counts = entry["input"]
    not_used = sum(counts["left_out"].values()) + sum(counts["unreadable"].values())
    assert counts["records"] == counts["used"] + not_used == 66
    assert counts["left_out"] == {"no text": 1, "kind that is not read: .png": 1}
    assert counts["examples"]["kind that is not read: .png"] == ["picture.png"]

    read, *later = entry["rules"].values()
    assert read["documents"] > counts["used"]  # notes.md is cut
    previous = read
    for rule in later:
        assert rule["documents"] == previous["documents"] - sum(rule["dropped"].values())
        previous = rule
    assert previous["documents"] == sum(split["documents"] for split in ledger["splits"].values())
    assert describe_input(entry) == [
        "66 files and records were there: 64 used, 2 left out",
        "left out: 1 kind that is not read: .png, 1 no text",
    ]


def test_a_ledger_of_an_earlier_version_is_described_by_nothing():
    assert describe_input({"license": "mit", "rules": {}, "unreadable": {}}) == []


def test_a_message_names_what_helps_against_its_own_errors_alone():
    damaged = ReadErrors(records=4)
    damaged.drop_record("damaged file", "a.gz")
    with pytest.raises(UserError, match="1 of 4 records are unreadable") as error:
        damaged.check_dropped_share("texts")
    assert "Repair what is damaged" in str(error.value) and "iconv" not in str(error.value)

    encoded = ReadErrors(records=1)
    encoded.drop_record("not UTF-8", "a.txt, line 1")
    with pytest.raises(UserError, match="iconv"):
        encoded.check_dropped_share("texts")


def test_records_without_text_never_stop_the_stage():
    errors = ReadErrors(records=100, used=9)
    errors.leave_out("no text", "a.jsonl", 90)
    errors.check_dropped_share("texts")
    errors.drop_record("malformed JSON", "a.jsonl, line 1")
    errors.check_dropped_share("texts")  # one of ten
    errors.drop_record("malformed JSON", "a.jsonl, line 2")
    with pytest.raises(UserError, match="2 of 10 records"):
        errors.check_dropped_share("texts")


def test_figures_beside_papers_name_the_format_of_the_papers(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_llm.data.corpus.task_runner.count_cores", lambda: 1)
    main = "\\documentclass{article}\\begin{document}" + PROSE + "\\end{document}"
    write(tmp_path / "paper", {"main.tex": main, "one.pdf": b"%PDF-1.4 broken", "two.pdf": b"%PDF-1.4 broken"})
    (tmp_path / "corpus").mkdir()
    section = Corpus(sources=[Source(license="mit", path=str(tmp_path / "paper"))])
    with pytest.raises(UserError, match="`format: latex` reads the papers alone") as error:
        make_corpus(section, tmp_path / "corpus", "")
    assert "iconv" not in str(error.value)


def test_rows_beyond_max_chars_are_told_to_raise_it(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_llm.data.corpus.task_runner.count_cores", lambda: 1)
    write(tmp_path, {"long.jsonl": json_lines(*[{"text": f"{PROSE} {number}"} for number in range(5)])})
    (tmp_path / "corpus").mkdir()
    section = Corpus(sources=[Source(license="mit", path=str(tmp_path / "long.jsonl"))], max_chars=200)
    with pytest.raises(UserError, match=r"raise corpus\.max_chars \(200\)") as error:
        make_corpus(section, tmp_path / "corpus", "")
    assert "lower corpus.min_chars" not in str(error.value)


def list_samples() -> list[tuple[Path, str | None]]:
    """List the folders of real data and of failing inputs, with the formats that only a name tells."""
    samples: list[tuple[Path, str | None]] = []
    for folder in (CASES / "corpus", CASES / "reading", Path(DATA)):
        if DATA and folder.is_dir():
            samples += [(path, None) for path in sorted(folder.iterdir()) if path.is_dir()]
    named = {"gutenberg": "books", "nltk_corpora": "books", "sharegpt": "discussions", "oasst": "discussions"}
    return samples + [(Path(DATA) / name, format) for name, format in named.items() if (Path(DATA) / name).is_dir()]


def count_source_by_its_own_column(**keys) -> tuple[ReadErrors, int] | None:
    """Read a source with the column of text that the error names, if it has no `text`; None if it is refused."""
    try:
        return count_source(**keys)
    except UserError as error:
        named = re.search(r"write `text: ([\w ]+)`", str(error))
    try:
        return count_source(**keys, text=named[1]) if named else None
    except UserError:
        return None


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="real data: set HF_LLM_DATA")
@pytest.mark.parametrize(("path", "format"), list_samples(), ids=lambda value: getattr(value, "name", value))
def test_real_folders_add_up(path, format):
    counted = count_source_by_its_own_column(path=str(path), format=format)
    if counted is None:
        return  # a folder without a column of text, or without a file that is read: named, and nothing is read
    errors, documents = counted
    check_sums(errors)
    everything = [file for file in path.rglob("*") if not file.is_dir()]
    assert errors.records >= len(everything) - errors.dropped.total()
    assert documents >= bool(errors.used)


@pytest.mark.slow
@pytest.mark.skipif(not DATA, reason="real data: set HF_LLM_DATA")
def test_every_file_of_real_data_adds_up():
    files = [file for file in sorted(Path(DATA).rglob("*")) if file.is_file()]
    read_count = 0
    for file in files:
        counted = count_source_by_its_own_column(path=str(file))
        if counted is None:
            continue
        errors, _ = counted
        check_sums(errors)
        assert errors.records >= 1, file
        read_count += 1
    assert read_count > len(files) / 2


@pytest.mark.skipif(not CASES.is_dir() or not DATA, reason="failing inputs beside the real data: set HF_LLM_DATA")
def test_every_file_of_the_failing_inputs_adds_up():
    refused = 0
    files = [file for file in sorted((CASES / "corpus").rglob("*")) if file.is_file()]
    for file in files:
        try:
            errors, _ = count_source(path=str(file))
        except UserError:
            refused += 1
            continue
        check_sums(errors)
        assert errors.records >= 1, file
    assert refused < len(files) / 2

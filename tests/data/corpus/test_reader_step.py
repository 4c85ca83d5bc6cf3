"""Files that a source names: read by name or by content, refused or counted, never as what they are not."""

import gzip
import json

import pytest

from hf_llm.core.errors import UserError
from hf_llm.data.corpus import reader_step
from hf_llm.data.corpus.config import Source
from hf_llm.data.corpus.reader_step import SourceReader
from hf_llm.data.corpus.sources import list_read_tasks
from tests.data.corpus.readers.test_warc import arc, http, page
from tests.data.files.test_file_content import PAGE, PROSE, READ, REFUSED, zip_of


def read_path(path, **keys):
    source = Source(license="mit", path=str(path), **keys)
    tasks = list_read_tasks([source])
    documents, counts = [], []
    for rank in range(len(tasks)):
        reader = SourceReader(tasks, 100_000)
        documents += list(reader.run(rank=rank, world_size=len(tasks)))
        counts.append(reader.faults)
        assert reader.faults.records == reader.faults.counted
    assert len(counts) == 1
    return [document.text for document in documents], counts[0]


def test_a_page_without_suffix_is_its_text_and_not_its_tags(tmp_path):
    (tmp_path / "page").write_text(PAGE)
    (tmp_path / "page.txt").write_text(PAGE)
    (tmp_path / "page.0").write_bytes(gzip.compress(PAGE.encode()))
    for name in ("page", "page.txt", "page.0"):
        (text,), _ = read_path(tmp_path / name)
        assert PROSE[:40] in text and "<" not in text


def test_an_arc_archive_of_any_name_is_its_pages(tmp_path):
    content = b"".join(arc(*[(f"http://a.org/{n}", "text/html", http(page(n))) for n in range(3)]))
    for name in ("crawl.arc", "crawl", "crawl.old", "crawl.txt"):
        (tmp_path / name).write_bytes(content)
        texts, _ = read_path(tmp_path / name)
        assert [text[0] for text in texts] == ["0", "1", "2"] and "HTTP/" not in "".join(texts)


def test_an_archive_without_suffix_is_read_file_by_file(tmp_path):
    for kind in ("a zip", "a tar", "a tar in gzip"):
        (tmp_path / "archive").write_bytes(READ[kind][0])
        assert len(read_path(tmp_path / "archive")[0]) == 1, kind


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_reader_reads_is_refused_before_any_work_and_beside_others_left_out_by_name(tmp_path, kind):
    (tmp_path / "good.txt").write_text(PROSE)
    (tmp_path / "file").write_bytes(REFUSED[kind][0])
    with pytest.raises(UserError, match=r"corpus\.sources\[0\]: .*file is not read: it is "):
        list_read_tasks([Source(license="mit", path=str(tmp_path / "file"))])
    texts, counts = read_path(tmp_path / "*")
    assert texts == [PROSE] and counts.left_out.total() == 1 and not counts.dropped


def test_a_page_named_as_text_is_left_out_where_nothing_reads_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(reader_step, "missing_packages", lambda *extras: ["trafilatura"])
    (tmp_path / "page.txt").write_text(PAGE)
    texts, counts = read_path(tmp_path / "page.txt")
    assert texts == [] and counts.left_out == {"web page named as text, which hf-llm[web] reads": 1}


def test_a_table_or_an_archive_in_an_archive_that_is_named_as_text_is_no_text(tmp_path):
    import zipfile

    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("good.txt", PROSE)
        archive.writestr("inner.txt", zip_of("a.txt"))
        archive.writestr("paper.txt", b"{\\rtf1 words}")
    texts, counts = read_path(tmp_path / "a.zip")
    assert texts == [PROSE] and counts.left_out == {"zip archive": 1, "RTF document": 1}


def test_rows_in_gzip_without_a_suffix_are_rows(tmp_path):
    rows = "".join(json.dumps({"text": f"row {i}"}) + "\n" for i in range(3))
    (tmp_path / "rows").write_bytes(gzip.compress(rows.encode()))
    assert read_path(tmp_path / "rows")[0] == ["row 0", "row 1", "row 2"]
    (tmp_path / "lines.jsonl").write_bytes(gzip.compress(rows.encode()))
    assert read_path(tmp_path / "lines.jsonl")[0] == ["row 0", "row 1", "row 2"]

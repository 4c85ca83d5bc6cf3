import gzip
import lzma

import pytest

from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.files.text_files import PIECE_CHARS, join_into_pieces, read_code_documents, read_text_documents


def read(path, max_chars=100_000):
    errors = ReadErrors()
    return list(read_text_documents(path, max_chars, errors)), errors


def test_a_file_that_fits_is_one_document(tmp_path):
    path = tmp_path / "a.txt"
    text = "# A heading\n\n" + "One line.\n\n" * 2000
    path.write_text(text)
    assert read(path)[0] == [text]


def test_a_long_file_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path):
    path = tmp_path / "a.txt"
    text = "".join(f"Line {i} of a paragraph,\nand its second line.\n\n" for i in range(9000))
    path.write_text(text)
    documents, errors = read(path)
    assert "".join(documents) == text
    assert all(document.endswith("\n\n") for document in documents)
    assert max(map(len, documents)) < PIECE_CHARS + 100
    assert errors.records == 27000 and not errors.dropped


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_characters_decide_not_bytes(tmp_path, name):
    text = "Строка из двадцати букв.\n\n" * 2000
    content = text.encode("utf-8")
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    assert read(tmp_path / name, max_chars=len(text))[0] == [text]
    assert len(read(tmp_path / name, max_chars=len(text) - 1)[0]) > 1


def test_a_heading_is_a_place_to_cut():
    lines = ["text\n"] * 5 + ["## Next\n"] + ["text\n"] * 3
    assert list(join_into_pieces(lines, 1000, 10)) == ["text\n" * 5, "## Next\n" + "text\n" * 3]


def test_titles_of_wikitext_and_separators_start_documents():
    lines = [" = Valkyria Chronicles = \n", " \n", "Text .\n", " = = Section = = \n", "More .\n"]
    again = [*lines, " = Tower = \n", "x\n", "<|endoftext|>\n", "y\n"]
    assert list(join_into_pieces(again, 1000, 1000)) == ["".join(lines), " = Tower = \nx\n", "y\n"]


def test_a_single_endless_line_is_cut_at_spaces(tmp_path):
    path = tmp_path / "a.txt"
    text = "wörter " * 500_000  # more than three times the buffer of a line, cut within characters
    path.write_text(text, encoding="utf-8")
    documents, errors = read(path, max_chars=1000)
    assert "".join(documents) == text
    assert max(map(len, documents)) <= 1000
    assert not errors.dropped


def test_a_file_that_is_not_utf8_is_read_whole_or_dropped_whole(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbffirst\n" + "caf\u00e9\n".encode("latin-1") + b"third\n")
    documents, errors = read(path)
    assert documents == ["first\ncaf\u00e9\nthird\n"] and not errors.dropped
    path.write_bytes(b"first\ncaf\x81\xe9\nthird\n")
    documents, errors = read(path)
    assert documents == [] and errors.dropped == {"not UTF-8": 1} and "a.txt" in errors.samples[0]


def test_a_binary_file_is_no_text(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"PK\x03\x04\x00\x00")
    documents, errors = read(path)
    assert documents == [] and errors.dropped == {"binary": 1}


def test_an_empty_file_has_no_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n \n")
    assert read(path)[0] == []


@pytest.mark.parametrize(("suffix", "compress"), [("gz", gzip.compress), ("xz", lzma.compress)])
def test_of_a_truncated_file_the_lines_before_the_cut_are_read(tmp_path, suffix, compress):
    path = tmp_path / f"a.txt.{suffix}"
    text = "".join(f"line {i * i}\n" for i in range(50_000))
    path.write_bytes(compress(text.encode())[:-2000])
    documents, errors = read(path)
    assert len("".join(documents)) > len(text) // 2 and text.startswith("".join(documents))
    assert errors.dropped == {"damaged file": 1} and "a.txt" in errors.samples[0]


def test_code_is_read_whole_or_not_at_all(tmp_path):
    good, latin, binary = (tmp_path / name for name in ("good.py", "latin.py", "binary.py"))
    good.write_text("def f():\n    return 1\n")
    latin.write_bytes(b"# caf\xe9\nx = 1\n")
    binary.write_bytes(b"x\0y")
    errors = ReadErrors()
    documents = [list(read_code_documents(path, 1000, errors)) for path in (good, latin, binary)]
    assert documents == [["def f():\n    return 1\n"], ["# caf\u00e9\nx = 1\n"], []]
    assert errors.dropped == {"binary": 1}

"""Rows of tables: which column is the text, nested ones included, and that no row stops a source."""

import json

import pyarrow
import pyarrow.parquet
import pytest

from hf_llm.core.errors import UserError
from hf_llm.data.corpus.config import Source
from hf_llm.data.corpus.readers.tabular import MAX_ROWS_WITHOUT_COLUMN, read
from hf_llm.data.files.read_errors import ReadErrors


def read_texts(path, column="text"):
    errors = ReadErrors()
    source = Source(license="mit", path=str(path), text=column)
    return [document.text for document in read(path, errors, source, 100_000)], errors


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"doc": {"text": "the text", "n": 1}}, "doc.text"),
        ({"a": {"b": {"c": "the text"}}}, "a.b.c"),
        ({"doc.text": "the text", "doc": {"text": "another"}}, "doc.text"),
        ({"a.b": {"c.d": "the text"}}, "a.b.c.d"),
        ({"a": {"x": 1}, "a.b": {"c": "the text"}}, "a.b.c"),
    ],
)
def test_a_name_with_dots_leads_into_nested_columns(tmp_path, row, column):
    assert read_texts(write_rows(tmp_path / "a.jsonl", [row]), column)[0] == ["the text"]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert read_texts(tmp_path / "a.parquet", column)[0] == ["the text"]


def test_a_missing_column_names_those_there_are_and_a_nested_one_that_may_be_meant(tmp_path):
    rows = [{"id": 1, "doc": {"body": "words"}}] * 3
    with pytest.raises(UserError, match=r"no column 'text'; it has id, doc: write `text: doc\.body`"):
        read_texts(write_rows(tmp_path / "a.jsonl", rows))


def test_rows_that_cannot_be_used_are_counted_wherever_they_stand(tmp_path):
    rows = [
        {"note": "no text here"},
        {"text": "one"},
        {"text": 5},
        {"text": ["a", "b"]},
        {"text": {"a": "b"}},
        {"text": "two"},
    ]
    texts, errors = read_texts(write_rows(tmp_path / "a.jsonl", rows))
    assert texts == ["one", "two"]
    assert errors.dropped == {"no column text": 1, "text is no text": 3} and errors.records == 6


def test_an_empty_outer_column_is_a_row_without_text(tmp_path):
    texts, errors = read_texts(write_rows(tmp_path / "a.jsonl", [{"doc": None}, {"doc": {"text": "x"}}]), "doc.text")
    assert texts == ["x"] and not errors.dropped and errors.left_out.total() == 1


def test_a_wrong_column_is_told_early_in_a_large_file(tmp_path):
    def endless():
        yield from [{"body": "x"}] * (MAX_ROWS_WITHOUT_COLUMN + 5)

    with pytest.raises(UserError, match="write `text: body`"):
        read_texts(write_rows(tmp_path / "a.jsonl", endless()))


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_csv_is_read_whatever_separates_its_values_and_in_every_encoding(tmp_path, delimiter, name, encoding):
    rows = [
        ["id", "text"],
        ["0", "A café, with a terrace"],
        ["1", "It opens; it closes | often"],
        ["2", 'He said "so"'],
    ]
    lines = [delimiter.join('"' + value.replace('"', '""') + '"' for value in row) for row in rows]
    (tmp_path / name).write_bytes(("\r\n".join(lines) + "\r\n").encode(encoding))
    texts, errors = read_texts(tmp_path / name)
    assert texts == [text for _, text in rows[1:]] and not errors.dropped


def test_the_line_by_which_excel_names_the_separator_is_no_header(tmp_path):
    (tmp_path / "a.csv").write_text("sep=;\nid;text\n0;a, b\n1;c\n")
    assert read_texts(tmp_path / "a.csv")[0] == ["a, b", "c"]


def test_a_table_of_one_column_keeps_its_commas_and_semicolons(tmp_path):
    (tmp_path / "a.csv").write_text('text\n"one; two"\nthree; four\n"five, six"\n')
    assert read_texts(tmp_path / "a.csv")[0] == ["one; two", "three; four", "five, six"]


ROWS = [{"text": f"row {i}", "n": i} for i in range(5)]


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(ROWS),
        json.dumps({"data": ROWS}),
        json.dumps({"version": "1.1", "data": ROWS}, indent=2),
        json.dumps({f"id {i}": row for i, row in enumerate(ROWS)}, indent=2),
        json.dumps({"meta": {"rows": [1, 2]}, "tags": ["a"], "rows": ROWS, "end": None}, indent=1),
        "".join(json.dumps(row) + "\n" for row in ROWS),
        "\n".join(json.dumps(row, indent=4) for row in ROWS),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_json_is_read_however_its_rows_are_laid_out(tmp_path, content, encoding):
    (tmp_path / "a.json").write_bytes(content.encode(encoding))
    texts, errors = read_texts(tmp_path / "a.json")
    assert texts == [row["text"] for row in ROWS] and not errors.dropped and errors.records == 5


def test_one_json_object_with_the_column_is_a_row_though_it_holds_arrays(tmp_path):
    row = {"text": "the text", "authors": [{"name": "a"}], "references": [{"id": 1}]}
    (tmp_path / "a.json").write_text(json.dumps(row, indent=2))
    assert read_texts(tmp_path / "a.json")[0] == ["the text"]


def test_several_arrays_are_refused_by_name(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"images": [{"id": 1}], "captions": [{"text": "a"}]}))
    with pytest.raises(UserError, match=r"several arrays of rows \(images, captions\).*jq"):
        read_texts(tmp_path / "a.json")


def test_a_truncated_array_in_an_object_gives_the_rows_before_the_cut(tmp_path):
    content = json.dumps({"data": ROWS}, indent=2)
    (tmp_path / "a.json").write_text(content[: len(content) * 2 // 3])
    texts, errors = read_texts(tmp_path / "a.json")
    assert texts and texts == [row["text"] for row in ROWS][: len(texts)] and errors.dropped == {"damaged file": 1}


def test_a_row_with_a_date_that_python_cannot_hold_is_dropped_alone(tmp_path):
    dates = pyarrow.array([0, 10**18, 86_400], pyarrow.timestamp("us"))
    table = pyarrow.table({"text": ["a", "b", "c"], "date": dates})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    texts, errors = read_texts(tmp_path / "a.parquet")
    assert texts == ["a", "c"] and errors.dropped == {"value out of range": 1} and errors.records == 3


def test_rows_of_a_file_without_suffix_are_told_by_their_content(tmp_path):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "parquet")
    write_rows(tmp_path / "lines", ROWS)
    (tmp_path / "array").write_text(json.dumps(ROWS))
    (tmp_path / "table").write_text("n;text\n" + "".join(f"{row['n']};{row['text']}\n" for row in ROWS))
    for name in ("parquet", "lines", "array", "table"):
        assert read_texts(tmp_path / name)[0] == [row["text"] for row in ROWS], name

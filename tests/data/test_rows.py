import contextlib
import gzip
import json
import sqlite3

import pytest

from hf_llm.data.faults import Faults
from hf_llm.data.rows import column, file_rows, hub_rows
from hf_llm.errors import UserError


def read(path):
    faults = Faults()
    return list(file_rows(path, faults)), faults


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut o', "malformed JSON"),
        (b'["no", "object"]', "no JSON object"),
        (b'{"text": "caf\xe9"}', "not UTF-8"),
        (b'{"text": "a\0b"}', "malformed JSON"),
        (b"[" * 100_000, "malformed JSON"),
    ],
)
def test_a_bad_line_is_dropped_alone_and_counted(tmp_path, line, reason):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n' + line + b'\n\n{"text": "two"}')
    rows, faults = read(path)
    assert rows == [(1, {"text": "one"}), (4, {"text": "two"})]
    assert faults.dropped == {reason: 1} and faults.records == 3
    assert f"{path}, line 2: {reason}" in faults.samples[0]


def test_a_line_too_long_to_hold_is_dropped_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_llm.data.rows.LINE_BYTES", 100)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' + json.dumps({"a": "x" * 1000}) + '\n{"a": 2}\n')
    rows, faults = read(path)
    assert rows == [(1, {"a": 1}), (3, {"a": 2})]
    assert faults.dropped.total() == 1


def test_every_format_gives_the_same_rows(tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [{"text": f"row, {i}\nnext line", "url": f"u{i}"} for i in range(5)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.json").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    quoted = "".join(f'"{row["text"]}",{row["url"]}\n' for row in rows)
    (tmp_path / "d.csv").write_text("text,url\n" + quoted)
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "e.parquet")
    with pyarrow.OSFile(str(tmp_path / "f.arrow"), "wb") as sink, pyarrow.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pyarrow.OSFile(str(tmp_path / "g.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    write_database(tmp_path / "h.sqlite", "documents", rows)
    for path in sorted(tmp_path.iterdir()):
        assert [row for _, row in read(path)[0]] == rows, path


def write_database(path, table, rows):
    table = table.replace('"', '""')
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute(f'CREATE TABLE "{table}" (text TEXT, url TEXT)')
        database.executemany(f'INSERT INTO "{table}" VALUES (:text, :url)', rows)


def test_of_several_tables_one_is_named(tmp_path):
    path = tmp_path / "a.db"
    write_database(path, "posts", [{"text": "a post", "url": ""}])
    write_database(path, 'odd "name"', [{"text": "odd", "url": ""}])
    with pytest.raises(UserError, match=r'several tables; write `table:` with one of odd "name", posts'):
        read(path)
    assert list(file_rows(path, Faults(), "posts")) == [(1, {"text": "a post", "url": ""})]
    assert list(file_rows(path, Faults(), 'odd "name"')) == [(1, {"text": "odd", "url": ""})]


def test_a_database_row_that_is_not_utf8_is_dropped_alone(tmp_path):
    path = tmp_path / "a.db"
    write_database(path, "posts", [{"text": "good", "url": ""}])
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("INSERT INTO posts VALUES (CAST(x'ff41' AS TEXT), '')")
    rows, faults = read(path)
    assert rows == [(1, {"text": "good", "url": ""})]
    assert faults.dropped == {"not UTF-8": 1}


@pytest.mark.parametrize("name", ["a.db", "a.arrow"])
def test_a_file_that_is_no_database_or_arrow_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"nothing of the kind" * 100)
    with pytest.raises(UserError, match=name):
        read(tmp_path / name)


def test_a_csv_row_with_columns_too_many_is_dropped(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n1,2,3\n1\n")
    rows, faults = read(path)
    assert [row for _, row in rows] == [{"a": "1", "b": "2"}]
    assert faults.dropped == {"wrong number of columns": 2}


@pytest.mark.parametrize("name", ["a.parquet", "a.json", "a.jsonl.gz"])
def test_a_damaged_file_is_an_error_that_names_it(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"[{PAR1" if name != "a.jsonl.gz" else gzip.compress(b'{"a": 1}\n' * 99)[:-9])
    with pytest.raises(UserError, match=f"{name} is damaged"):
        read(path)


def test_one_json_object_is_no_rows(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"train": []}, indent=2))
    with pytest.raises(UserError, match="one JSON object"):
        read(tmp_path / "a.json")


def test_a_missing_column_names_the_ones_there_are_and_the_remedy():
    with pytest.raises(UserError, match=r"x\.jsonl, line 3 has no column 'text'; it has id, body: write `text: body`"):
        column({"id": 1, "body": "b"}, "text", "x.jsonl, line 3")


def test_the_hub_without_a_network_is_a_clear_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="someone/something train cannot be read"):
        next(iter(hub_rows("someone/something", None, "train", True, None)))

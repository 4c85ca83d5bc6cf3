import bz2
import contextlib
import gzip
import json
import lzma
import random
import sqlite3
import tracemalloc

import pyarrow
import pyarrow.parquet
import pytest

from hf_llm.core.errors import UserError
from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.files.tabular import LINE_BYTES, count_hub_shards, get_column, read_hub_rows, read_rows


def read(path):
    errors = ReadErrors()
    return list(read_rows(path, errors)), errors


def zstandard(data):
    return pyarrow.Codec("zstd").compress(data, asbytes=True)


LETTERS = random.Random(0)
LINES = b"".join(b'{"n": %d, "text": "%s"}\n' % (i, LETTERS.randbytes(20).hex().encode()) for i in range(20_000))


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut o', "malformed JSON"),
        (b'["no", "object"]', "no JSON object"),
        (b'{"text": "caf\x81\xe9"}', "not UTF-8"),
        (b'{"text": "a\0b"}', "malformed JSON"),
        (b"[" * 100_000, "malformed JSON"),
    ],
)
def test_a_bad_line_is_dropped_alone_and_counted(tmp_path, line, reason):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "one"}\n' + line + b'\n\n{"text": "two"}')
    rows, errors = read(path)
    assert rows == [(1, {"text": "one"}), (4, {"text": "two"})]
    assert errors.dropped == {reason: 1} and errors.records == 3
    assert f"{path}, line 2: {reason}" in errors.samples[0]


def test_a_line_too_long_to_hold_is_dropped_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_llm.data.files.tabular.LINE_BYTES", 100)
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n' + json.dumps({"a": "x" * 1000}) + '\n{"a": 2}\n')
    rows, errors = read(path)
    assert rows == [(1, {"a": 1}), (3, {"a": 2})]
    assert errors.dropped.total() == 1


def test_every_format_gives_the_same_rows(tmp_path):
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
    assert list(read_rows(path, ReadErrors(), "posts")) == [(1, {"text": "a post", "url": ""})]
    assert list(read_rows(path, ReadErrors(), 'odd "name"')) == [(1, {"text": "odd", "url": ""})]


def test_a_database_row_that_is_not_utf8_is_dropped_alone(tmp_path):
    path = tmp_path / "a.db"
    write_database(path, "posts", [{"text": "good", "url": ""}])
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.execute("INSERT INTO posts VALUES (CAST(x'ff41' AS TEXT), '')")
    rows, errors = read(path)
    assert rows == [(1, {"text": "good", "url": ""})]
    assert errors.dropped == {"not UTF-8": 1}


def test_a_csv_row_with_columns_too_many_is_dropped(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("a,b\n1,2\n1,2,3\n1\n")
    rows, errors = read(path)
    assert [row for _, row in rows] == [{"a": "1", "b": "2"}]
    assert errors.dropped == {"wrong number of columns": 2}


QUOTED = 'text,n\n"two\nlines, and ""quotes""",1\n\n"no end,2\nfine,3\n5" disk,4\n"end"x,5\n'


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("lines_per_value", [1, 2, 7, 49, 51, 120])
def test_values_of_several_lines_do_not_hide_what_separates_them(tmp_path, delimiter, lines_per_value):
    value = "\n".join(f"line {n}, with a comma; and more | of it" for n in range(lines_per_value))
    rows = "".join(f'{n}{delimiter}"{value}"{delimiter}{n * n}\n' for n in range(30))
    (tmp_path / "a.csv").write_text(delimiter.join(["id", "text", "square"]) + "\n" + rows)
    read_back, errors = read(tmp_path / "a.csv")
    assert errors.records == 30 and errors.dropped == {}
    assert [row for _, row in read_back] == [{"id": str(n), "text": value, "square": str(n * n)} for n in range(30)]


def test_a_quote_without_its_end_costs_its_own_line_in_csv(tmp_path):
    (tmp_path / "a.csv").write_text(QUOTED)
    rows, errors = read(tmp_path / "a.csv")
    assert rows == [
        (2, {"text": 'two\nlines, and "quotes"', "n": "1"}),
        (6, {"text": "fine", "n": "3"}),
        (7, {"text": '5" disk', "n": "4"}),
    ]
    assert errors.dropped == {"a quote without its end": 2} and errors.records == 5
    assert "a.csv, line 5" in errors.samples[0]


def test_a_quote_whose_end_is_anothers_beginning_costs_its_own_line(tmp_path):
    (tmp_path / "a.csv").write_text('text,n\n"stray,1\nfine,2\n" x",3\nlast,4\n')
    rows, errors = read(tmp_path / "a.csv")
    assert [row["n"] for _, row in rows] == ["2", "3", "4"] and errors.dropped == {"a quote without its end": 1}


def test_in_tsv_quotes_may_be_characters_like_others(tmp_path):
    (tmp_path / "a.tsv").write_text('text\tn\n"a\tb"\t1\n"Hi," he said\t2\n"no end\t3\nfine\t4\n')
    rows, errors = read(tmp_path / "a.tsv")
    assert [row["text"] for _, row in rows] == ["a\tb", '"Hi," he said', '"no end', "fine"] and not errors.dropped


COMPRESSIONS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstandard}


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_json_lines_are_read_through_every_compression(tmp_path, suffix):
    path = tmp_path / f"a.jsonl.{suffix}"
    path.write_bytes(COMPRESSIONS[suffix](LINES))
    rows, errors = read(path)
    assert [row["n"] for _, row in rows] == list(range(20_000)) and not errors.dropped


@pytest.mark.parametrize("suffix", COMPRESSIONS)
def test_a_truncated_file_gives_the_lines_before_the_cut(tmp_path, suffix):
    path = tmp_path / f"a.jsonl.{suffix}"
    whole = COMPRESSIONS[suffix](LINES)
    path.write_bytes(whole[: len(whole) * 9 // 10])
    rows, errors = read(path)
    assert [row["n"] for _, row in rows] == list(range(len(rows)))
    assert suffix == "bz2" or len(rows) > 10_000  # bzip2 loses the whole block of 900 kB
    assert errors.dropped == {"damaged file": 1} and str(path) in errors.samples[0]
    assert errors.records == len(rows) + 1


def test_a_gzip_with_broken_bytes_in_the_middle_gives_the_lines_before_them(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    whole = bytearray(gzip.compress(LINES))
    whole[len(whole) // 2 : len(whole) // 2 + 50] = b"\xff" * 50
    path.write_bytes(whole)
    rows, errors = read(path)
    assert len(rows) > 5_000 and [row["n"] for _, row in rows[:5000]] == list(range(5_000))
    assert errors.dropped["damaged file"] == 1


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.json", "a.db", "a.jsonl.gz", "a.csv.xz"])
def test_a_file_that_is_not_what_its_name_says_is_one_fault(tmp_path, name):
    (tmp_path / name).write_bytes(b"[{nothing of the kind" * 100)
    rows, errors = read(tmp_path / name)
    assert rows == [] and errors.dropped == {"damaged file": 1} and errors.records == 1
    assert str(tmp_path / name) in errors.samples[0]
    with pytest.raises(UserError, match=name):
        errors.check_dropped_share("the source")


def test_a_truncated_file_of_a_library_is_one_fault_and_rows_before_the_cut_are_kept(tmp_path):
    rows = [{"text": f"row {i} " + "x" * 1000, "url": ""} for i in range(3000)]
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pyarrow.OSFile(str(tmp_path / "b.arrow"), "wb") as sink, pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)
    write_database(tmp_path / "c.db", "documents", rows)
    (tmp_path / "d.json").write_text(json.dumps(rows))
    for path, kept in zip(sorted(tmp_path.iterdir()), (0, 1000, 0, 1500), strict=True):
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
        rows_read, errors = read(path)
        assert [row for _, row in rows_read] == rows[: len(rows_read)] and len(rows_read) >= kept, path
        assert errors.dropped == {"damaged file": 1} and str(path) in errors.samples[0]


def test_a_file_that_has_vanished_is_the_disks_error_not_a_fault(tmp_path):
    for name in ("a.jsonl", "a.jsonl.zst", "a.csv", "a.json", "a.parquet", "a.arrow", "a.db"):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / name)


def test_a_json_array_is_read_in_pieces_and_kept_up_to_its_damage(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_llm.data.files.tabular.CHUNK_BYTES", 7)
    path = tmp_path / "a.json"
    values = [{"a": "caf\u00e9 [,]", "b": [1, {"c": None}]}, {}, 12345678901, {"a": "\U0001f600" * 9}]
    text = "\ufeff [ " + " ,\n ".join(json.dumps(value, ensure_ascii=False) for value in values) + " ] "
    path.write_text(text, encoding="utf-8")
    rows, errors = read(path)
    assert rows == [(1, values[0]), (2, values[1]), (4, values[3])]
    assert errors.dropped == {"no JSON object": 1} and errors.records == 4
    for broken in ("[]", '[{"a": 1}, {"a": 2}', '[{"a": 1} {"a": 2}]', '[{"a": 1}, nonsense]', '[{"a": 1},'):
        path.write_text(broken)
        rows, errors = read(path)
        assert [row for _, row in rows] == ([] if broken == "[]" else [{"a": 1}, {"a": 2}][: len(rows)])
        assert errors.dropped["damaged file"] == (broken != "[]")


def peak_memory(action):
    tracemalloc.start()
    action()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_line_of_200_megabytes_is_dropped_in_bounded_memory(tmp_path, name):
    path = tmp_path / name
    with open(path, "wb") as file:
        file.write(b'{"text": "' if name == "a.jsonl" else b"text\n")
        for _ in range(200):
            file.write(b"x" * (1 << 20))
        file.write(b'"}\n{"text": "next"}\n')
    result = []
    assert peak_memory(lambda: result.extend(read(path))) < 3 * LINE_BYTES
    rows, errors = result
    assert [row["text"] for _, row in rows] == ["next" if name == "a.jsonl" else '{"text": "next"}']
    assert errors.dropped == {"line longer than 64 MiB": 1}


def test_a_gzip_bomb_is_left_after_a_stated_size(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_llm.data.files.tabular.LINE_BYTES", 1 << 20)
    monkeypatch.setattr("hf_llm.data.files.tabular.ENDLESS_BYTES", 8 << 20)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "good"}\n') + gzip.compress(bytes(64 << 20), 1))
    result = []
    assert peak_memory(lambda: result.extend(read(path))) < 8 << 20
    rows, errors = result
    assert [row for _, row in rows] == [{"text": "good"}]
    assert errors.dropped == {"line longer than 1 MiB": 1, "damaged file": 1}
    assert "does not end within 8 MiB" in errors.samples[1]


def test_one_json_object_is_no_rows(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"train": []}, indent=2))
    with pytest.raises(UserError, match="one JSON object"):
        read(tmp_path / "a.json")


def test_a_missing_column_names_the_ones_there_are_and_the_remedy():
    with pytest.raises(UserError, match=r"x\.jsonl, line 3 has no column 'text'; it has id, body: write `text: body`"):
        get_column({"id": 1, "body": "b"}, "text", "x.jsonl, line 3")


def test_the_hub_without_a_network_is_a_clear_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="someone/something train cannot be read"):
        next(iter(read_hub_rows("someone/something", None, "train", True, None)))


@pytest.fixture
def hub_folder(tmp_path):
    """A data set of four files, as the Hub holds them."""
    for number in range(4):
        rows = [{"text": f"file {number}, row {i}"} for i in range(3)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"train-{number:05d}-of-00004.parquet")
    return str(tmp_path)


@pytest.mark.parametrize("streaming", [True, False])
def test_rows_of_a_data_set_are_sliced_in_its_order(hub_folder, streaming):
    whole = list(read_hub_rows(hub_folder, None, "train", streaming, None))
    assert [number for number, _ in whole] == list(range(1, 13))
    assert whole[3] == (4, {"text": "file 1, row 0"})
    assert list(read_hub_rows(hub_folder, None, "train", streaming, 4, skip=2)) == whole[2:6]
    assert list(read_hub_rows(hub_folder, None, "train", streaming, 40, skip=10)) == whole[10:]


@pytest.mark.parametrize("count", [4, 3, 1])
def test_the_shards_of_a_data_set_are_the_data_set(hub_folder, count):
    assert count_hub_shards(hub_folder, None, "train", True) == 4
    assert count_hub_shards(hub_folder, None, "train", False) == 1
    shards = [list(read_hub_rows(hub_folder, None, "train", True, None, shard=(count, i))) for i in range(count)]
    whole = [row for _, row in read_hub_rows(hub_folder, None, "train", True, None)]
    assert [row for shard in shards for _, row in shard] == whole
    assert all(shard[0][0] == 1 for shard in shards)


def test_a_damaged_file_of_a_data_set_is_a_clear_error(hub_folder, tmp_path):
    (tmp_path / "train-00002-of-00004.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="cannot be read"):
        list(read_hub_rows(hub_folder, None, "train", True, None))


def test_the_files_of_a_data_set_can_be_named_by_a_pattern(hub_folder, tmp_path):
    rows = list(read_hub_rows(f"{hub_folder}/train-0000[13]-*.parquet", None, "train", True, None))
    assert [row["text"] for _, row in rows] == [f"file {n}, row {i}" for n in (1, 3) for i in range(3)]
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard(b'{"text": "one"}\n{"text": "two"}\n'))  # as The Pile has them
    assert [row["text"] for _, row in read_hub_rows(f"{tmp_path}/*.zst", None, "train", True, None)] == ["one", "two"]


def test_a_data_set_with_a_loading_script_is_a_clear_error(tmp_path):
    (tmp_path / f"{tmp_path.name}.py").write_text("import datasets\n")
    with pytest.raises(UserError, match=r"(?s)scripts are no longer supported.*hub: hf://datasets/"):
        next(read_hub_rows(str(tmp_path), None, "train", True, None))

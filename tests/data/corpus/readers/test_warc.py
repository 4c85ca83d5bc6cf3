"""Web archives: what is a document, and what survives each kind of damage."""

import gzip
import os
import re
import tracemalloc
import zlib
from pathlib import Path

import brotli
import pytest
import zstandard

from hf_llm.data.corpus.readers import warc
from hf_llm.data.files.read_errors import ReadErrors

REAL = Path(os.environ.get("HF_LLM_DATA", "."))
PROSE = "The river rises in the northern hills and runs for two hundred miles to the sea. "
HTML = "text/html; charset=utf-8"


def page(number: int) -> bytes:
    return f"<html><head><title>Page {number}</title></head><body><p>{number}: {PROSE * 5}</p></body></html>".encode()


def http(body: bytes, kind: str = HTML, status: str = "HTTP/1.1 200 OK", extra: str = "") -> bytes:
    return f"{status}\r\nContent-Type: {kind}\r\n{extra}\r\n".encode() + body


def record(block: bytes, kind: str = "response", length: int | str | None = None, url: str = "http://a.org/") -> bytes:
    header = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Record-ID: <urn:uuid:1>\r\nWARC-Target-URI: {url}\r\n"
        f"WARC-Date: 2024-04-25T16:24:44Z\r\nContent-Length: {len(block) if length is None else length}\r\n\r\n"
    )
    return header.encode() + block + b"\r\n\r\n"


def pages(count: int) -> list[bytes]:
    return [record(http(page(n)), url=f"http://a.org/{n}") for n in range(count)]


def read(path: Path, *parts: bytes) -> tuple[list[str], ReadErrors]:
    """The last part of the address of every document, and the errors, of an archive of these parts."""
    path.write_bytes(b"".join(parts))
    errors = ReadErrors()
    return [document.url.rpartition("/")[2] for document in warc.read(path, errors, None, 100_000)], errors


def zipped(*records: bytes) -> list[bytes]:
    return [gzip.compress(one, mtime=0) for one in records]


def test_a_page_becomes_a_document_that_says_where_it_is_from(tmp_path):
    (tmp_path / "a.warc").write_bytes(record(http(page(1)), url="http://a.org/1"))
    (document,) = warc.read(tmp_path / "a.warc", ReadErrors(), None, 100_000)
    assert document.text.strip() == f"1: {PROSE * 5}".strip()
    assert (document.url, document.license) == ("http://a.org/1", None)
    assert document.about == {
        "record": "<urn:uuid:1>",
        "date": "2024-04-25T16:24:44Z",
        "title": "Page 1",
        "content_type": "text/html",
    }


def test_only_text_that_was_found_is_a_document_and_the_rest_is_no_fault(tmp_path):
    others = [
        record(b"software: none", "warcinfo"),
        record(b"GET / HTTP/1.1\r\n\r\n", "request"),
        record(b"fetchTimeMs: 1", "metadata"),
        record(http(b""), "revisit"),
        record(http(page(7), status="HTTP/1.1 404 Not Found")),
        record(http(page(8), status="HTTP/1.1 301 Moved")),
        record(http(b"\x89PNG", "image/png")),
    ]
    names, errors = read(tmp_path / "a.warc", *others, *pages(1), record(b"Plain words.\n", "conversion"))
    assert names == ["0", ""]
    assert (errors.records, errors.dropped.total()) == (9, 0)
    assert errors.left_out == {
        "WARC record of type warcinfo": 1, "WARC record of type request": 1, "WARC record of type metadata": 1,
        "WARC record of type revisit": 1, "response with status 404": 1, "response with status 301": 1,
        "response of type image/png": 1,
    }  # fmt: skip


def test_plain_text_is_taken_as_it_stands(tmp_path):
    (tmp_path / "a.warc").write_bytes(record(http("Zwölf Bücher\n\n  <b>".encode("latin-1"), "text/plain")))
    (document,) = warc.read(tmp_path / "a.warc", ReadErrors(), None, 100_000)
    assert document.text == "Zwölf Bücher\n\n  <b>"


@pytest.mark.parametrize(
    ("body", "extra"),
    [
        (gzip.compress(page(0)), "Content-Encoding: gzip\r\n"),
        (brotli.compress(page(0)), "Content-Encoding: br\r\n"),
        (zlib.compress(page(0)), "Content-Encoding: deflate\r\n"),
        (b"%x\r\n%s\r\n0\r\n\r\n" % (len(page(0)), page(0)), "Transfer-Encoding: chunked\r\n"),
        (page(0), "Content-Encoding: gzip\r\n"),
        (page(0), "Content-Encoding: br\r\nTransfer-Encoding: chunked\r\n"),
    ],
    ids=["gzip", "brotli", "deflate", "chunked", "gzip, stored unpacked", "brotli and chunked, stored unpacked"],
)
def test_a_body_is_unpacked_as_its_header_says_or_taken_as_it_is(tmp_path, body, extra):
    names, errors = read(tmp_path / "a.warc", record(http(body, extra=extra), url="http://a.org/x"))
    assert names == ["x"]
    assert not errors.dropped


def test_a_body_that_unpacks_without_end_is_one_fault(tmp_path):
    bomb = gzip.compress(b" " * (300 << 20))
    one = record(http(bomb, extra="Content-Encoding: gzip\r\n"))
    tracemalloc.start()
    names, errors = read(tmp_path / "a.warc", *pages(1), one, *pages(2)[1:])
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()
    assert names == ["0", "1"]
    assert dict(errors.dropped) == {"page longer than 8 MiB": 1}


def test_a_damaged_member_is_lost_alone(tmp_path):
    members = zipped(*pages(6))
    members[2] = members[2][:40] + b"\0\xff" * 20 + members[2][80:]
    members[4] = b"XXXX" + members[4][4:]
    names, errors = read(tmp_path / "a.warc.gz", *members)
    assert names == ["0", "1", "3", "5"]
    assert errors.records == 6
    assert errors.dropped.total() == 2
    assert all("damaged gzip member" in reason for reason in errors.dropped)


def test_a_truncated_archive_gives_what_stands_before_the_end(tmp_path):
    whole = b"".join(zipped(*pages(4)))
    names, errors = read(tmp_path / "a.warc.gz", whole[:-60])
    assert names == ["0", "1", "2"]
    assert dict(errors.dropped) == {"truncated gzip member": 1}
    names, errors = read(tmp_path / "a.warc", b"".join(pages(4))[:-60])
    assert names == ["0", "1", "2"]
    assert dict(errors.dropped) == {"truncated record": 1}


@pytest.mark.parametrize("pack", [lambda *records: records, zipped], ids=["plain", "gzip"])
@pytest.mark.parametrize("length", [-300, 300, 10**11, "many"])
def test_after_a_wrong_length_reading_goes_on_at_the_next_record(tmp_path, length, pack):
    records = pages(5)
    right = int(re.search(rb"Content-Length: (\d+)", records[2])[1])
    wrong = length if isinstance(length, str) else right + length
    records[2] = records[2].replace(b"Content-Length: %d" % right, f"Content-Length: {wrong}".encode())
    names, errors = read(tmp_path / "a.warc", *pack(*records))
    assert names == ["0", "1", "3", "4"]
    assert errors.dropped.total() == 1


def test_a_malformed_http_header_is_one_fault(tmp_path):
    bad = record(http(page(1), status="HTP\0 garbage"))
    names, errors = read(tmp_path / "a.warc", *pages(1), bad, *pages(2)[1:])
    assert names == ["0", "1"]
    assert dict(errors.dropped) == {"malformed HTTP header": 1}


def test_rubbish_between_records_and_a_file_of_rubbish(tmp_path):
    first, second = pages(2)
    names, errors = read(tmp_path / "a.warc", first, b"rubbish " * 9, b"\r\n\r\n", second)
    assert names == ["1"]  # no telling where the first one ends
    assert errors.dropped.total() == 1
    names, errors = read(tmp_path / "b.warc", os.urandom(3 << 20))
    assert names == []
    assert (errors.records, dict(errors.dropped)) == (1, {"no WARC record": 1})


def test_an_empty_file_is_no_fault(tmp_path):
    names, errors = read(tmp_path / "a.warc.gz", b"")
    assert (names, errors.records) == ([], 0)


def test_an_endless_record_is_passed_over_in_bounded_memory(tmp_path):
    endless = record(b"x" * (100 << 20), length=10**15)
    path = tmp_path / "a.warc"
    path.write_bytes(b"".join([*pages(1), endless, *pages(2)[1:]]))
    tracemalloc.start()
    names, errors = [], ReadErrors()
    names = [document.url[-1] for document in warc.read(path, errors, None, 100_000)]
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert names == ["0", "1"]
    assert dict(errors.dropped) == {"record longer than 64 MiB": 1}


def test_a_member_of_zeros_is_left_in_bounded_memory(tmp_path):
    bomb = gzip.compress(record(b"\0" * (100 << 20)))
    path = tmp_path / "a.warc.gz"
    path.write_bytes(b"".join([*zipped(*pages(1)), bomb, *zipped(*pages(2)[1:])]))
    errors = ReadErrors()
    tracemalloc.start()
    names = [document.url[-1] for document in warc.read(path, errors, None, 100_000)]
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
    assert names == ["0", "1"]
    assert errors.dropped.total() == 1


def test_one_member_may_hold_the_whole_archive(tmp_path):
    names, errors = read(tmp_path / "a.warc.gz", gzip.compress(b"".join(pages(5))))
    assert names == ["0", "1", "2", "3", "4"]
    assert not errors.dropped


def test_chunks_of_any_size_give_the_same_records(tmp_path, monkeypatch):
    members = zipped(*pages(6))
    members[2] = members[2][:40] + b"\0\xff" * 20 + members[2][80:]
    expected = read(tmp_path / "a.warc.gz", *members)
    assert expected[0] == ["0", "1", "3", "4", "5"]
    for size in (50, 700, 5000):
        monkeypatch.setattr(warc, "CHUNK_BYTES", size)
        assert read(tmp_path / "a.warc.gz", *members) == expected


def lf(content: bytes) -> bytes:
    return content.replace(b"\r\n", b"\n")


@pytest.mark.parametrize(
    "message",
    [
        lf(http(page(0))[:60]) + http(page(0))[60:],
        http(page(0), "Text/HTML; Charset=UTF-8"),
        http(page(0), "TEXT/HTML"),
        http(page(0), '"text/html";charset="utf-8"'),
        http(page(0), "text/html, text/html"),
        http(page(0), "application/XHTML+xml"),
        http(page(0), ""),
        http(page(0), "application/octet-stream"),
        b"HTTP/1.1 200 OK\r\n\r\n" + page(0),
        b"HTTP/1.0 200\r\nServer: x\r\n\r\n" + page(0),
        b"HTTP/1.1 200 OK\nContent-type:text/html\nX-Long: a\n b\n\n" + page(0),
        b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nBroken line\r\n\r\n" + page(0),
        http(b"\n  <!-- made by hand -->\n<HTML>" + page(0)[6:], ""),
    ],
)
def test_a_page_is_read_whatever_its_header_looks_like(tmp_path, message):
    names, errors = read(tmp_path / "a.warc", record(message, url="http://a.org/x"), *pages(2)[1:])
    assert names == ["x", "1"] and (errors.records, errors.dropped.total()) == (2, 0)


def test_a_body_without_a_type_that_is_no_page_is_none(tmp_path):
    bodies = [b"\x89PNG\r\n\x1a\n" + b"\0\xff" * 50, b"%PDF-1.4\n\xe2\xe3\xcf\xd3\0\0"]
    names, errors = read(tmp_path / "a.warc", *[record(http(body, "")) for body in bodies], *pages(1))
    assert names == ["0"] and errors.left_out == {"response of type unknown": 2} and not errors.dropped


def warc_lines(*lines: str, block: bytes) -> bytes:
    header = "\r\n".join(["WARC/1.0", *lines, f"Content-Length: {len(block)}"])
    return header.encode() + b"\r\n\r\n" + block + b"\r\n\r\n"


def test_answers_of_other_protocols_are_neither_pages_nor_faults(tmp_path):
    others = [
        warc_lines(
            "WARC-Type: response", "WARC-Target-URI: dns:a.org", "Content-Type: text/dns", block=b"2020\na.org. A 1\n"
        ),
        warc_lines(
            "WARC-Type: response", "WARC-Target-URI: whois://a.org", "Content-Type: text/plain", block=b"Domain: a\n"
        ),
        warc_lines("WARC-Type: resource", "WARC-Target-URI: urn:log", "Content-Type: text/plain", block=b"a log\n"),
        warc_lines(
            "WARC-Type: resource", "WARC-Target-URI: http://a.org/p", "Content-Type: image/png", block=b"\x89PNG"
        ),
    ]
    names, errors = read(tmp_path / "a.warc", *others, *pages(1))
    assert names == ["0"] and not errors.dropped and errors.records == 5
    assert errors.left_out == {
        "WARC record of dns address": 1,
        "WARC record of whois address": 1,
        "WARC record of urn address": 1,
        "response of type image/png": 1,
    }


def test_a_page_stored_as_a_resource_is_a_page_and_a_record_without_a_type_is_counted(tmp_path):
    stored = warc_lines(
        "WARC-Type: resource", "WARC-Target-URI: http://a.org/r", "Content-Type: Text/HTML", block=page(3)
    )
    typeless = warc_lines("WARC-Target-URI: http://a.org/t", block=page(4))
    divided = warc_lines("WARC-Type: continuation", "WARC-Target-URI: http://a.org/t", block=page(4))
    names, errors = read(tmp_path / "a.warc", stored, typeless, divided)
    assert names == ["r"]
    assert errors.dropped == {"no record type": 1, "continuation of a divided record": 1} and errors.records == 3


def test_text_records_with_lf_alone_are_read(tmp_path):
    one = b"WARC/1.0\nWARC-Type: conversion\nWARC-Target-URI: http://a.org/w\nContent-Length: 13\n\nPlain words.\n\n\n"
    names, errors = read(tmp_path / "a.warc.wet", one, one)
    assert names == ["w", "w"] and not errors.dropped
    names, errors = read(tmp_path / "b.warc", lf(pages(1)[0]), *pages(2)[1:])
    assert "1" in names and len(names) + errors.dropped.total() == 2


def zstd(*records: bytes, dictionary: bytes | None = None) -> list[bytes]:
    trained = zstandard.ZstdCompressionDict(dictionary) if dictionary else None
    frames = [zstandard.ZstdCompressor(dict_data=trained).compress(one) for one in records]
    if dictionary:
        frames.insert(0, b"\x5d\x2a\x4d\x18" + len(dictionary).to_bytes(4, "little") + dictionary)
    return frames


def test_zstandard_is_unpacked_with_and_without_a_dictionary(tmp_path):
    names, errors = read(tmp_path / "a.warc.zst", *zstd(*pages(3)))
    assert names == ["0", "1", "2"] and not errors.dropped
    names, errors = read(tmp_path / "b.warc.zst", zstandard.ZstdCompressor().compress(b"".join(pages(3))))
    assert names == ["0", "1", "2"] and not errors.dropped
    dictionary = zstandard.train_dictionary(2048, [record(http(page(n))) for n in range(200)]).as_bytes()
    names, errors = read(tmp_path / "c.warc.zst", *zstd(*pages(3), dictionary=dictionary))
    assert names == ["0", "1", "2"] and not errors.dropped


def test_a_damaged_zstandard_frame_is_lost_alone_and_a_bomb_is_left(tmp_path):
    first, second, third = zstd(*pages(3))
    names, errors = read(tmp_path / "a.warc.zst", first, second[:40] + b"\xff" * 20 + second[60:], third)
    assert names == ["0", "2"] and errors.dropped.total() == 1
    names, errors = read(tmp_path / "b.warc.zst", first, third[:-30])
    assert names == ["0"] and errors.dropped == {"truncated zstandard frame": 1}
    bomb = zstandard.ZstdCompressor().compress(bytes(300 << 20))
    names, errors = read(tmp_path / "c.warc.zst", first, bomb, third)
    assert names[-1] == "2" and errors.dropped.total() == 1


def arc(*contents: tuple[str, str, bytes], version: int = 1) -> list[bytes]:
    fields = "URL IP-address Archive-date Content-type Archive-length"
    if version == 2:
        fields = "URL IP-address Archive-date Content-type Result-code Checksum Location Offset Filename Archive-length"
    description = f"{version} 0 InternetArchive\n{fields}\n\n".encode()
    more = "" if version == 1 else " 200 abc - 0 a.arc"
    records = [("filedesc://a.arc", "text/plain", description), *contents]
    return [
        f"{url} 1.2.3.4 20080430204825 {kind}{more} {len(block)}\n".encode() + block + b"\n"
        for url, kind, block in records
    ]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("pack", [lambda *records: records, zipped], ids=["plain", "gzip"])
def test_the_pages_of_an_arc_archive_are_read(tmp_path, version, pack):
    records = arc(
        ("dns:a.org", "text/dns", b"20080430\na.org. A 1.2.3.4\n"),
        ("http://a.org/1", "text/html", http(page(1))),
        ("http://a.org/i", "image/png", http(b"\x89PNG", "image/png")),
        ("http://a.org/a b/2", "text/html", lf(http(page(2))[:50]) + http(page(2))[50:]),
        ("http://a.org/3", "text/html", http(page(3), status="HTTP/1.1 404 Not Found")),
        version=version,
    )
    names, errors = read(tmp_path / "a.arc.gz", *pack(*records))
    assert names == ["1", "2"] and not errors.dropped and errors.records == 6
    assert errors.left_out == {
        "WARC record of type warcinfo": 1,
        "WARC record of dns address": 1,
        "response of type image/png": 1,
        "response with status 404": 1,
    }
    (first, _) = warc.read(tmp_path / "a.arc.gz", ReadErrors(), None, 100_000)
    assert first.url == "http://a.org/1" and first.about["date"] == "2008-04-30T20:48:25Z"


def test_after_damage_an_arc_archive_is_read_on(tmp_path):
    start, first, second, third = arc(*[(f"http://a.org/{n}", "text/html", http(page(n))) for n in range(3)])
    names, errors = read(tmp_path / "a.arc", start, first, second[:-200] + b"\n", third)
    assert "2" in names and len(names) + errors.dropped.total() == 3
    names, errors = read(tmp_path / "b.arc", start, first, third[:-200])
    assert names == ["0"] and errors.dropped == {"truncated record": 1}


@pytest.mark.skipif("HF_LLM_DATA" not in os.environ, reason="needs the folder of real data, HF_LLM_DATA")
@pytest.mark.parametrize(
    ("name", "document_count", "dropped"),
    [
        ("dolma-sample-0000.warc.gz", 22, 0),
        ("resiliparse-warcfile.warc.gz", 16, 0),
        ("whirlwind.warc.gz", 1, 0),
        ("whirlwind.warc.wet.gz", 1, 0),
        ("whirlwind.warc.wat", 0, 0),
        ("warcio-example.warc.gz", 1, 0),
        ("warcio-example-trunc.warc", 0, 1),
    ],
)
def test_real_archives(name, document_count, dropped):
    errors = ReadErrors()
    documents = list(warc.read(REAL / "warc" / name, errors, None, 100_000))
    assert (len(documents), errors.dropped.total()) == (document_count, dropped)
    assert all(document.text.strip() and document.url.startswith("http") for document in documents)


@pytest.mark.skipif("HF_LLM_DATA" not in os.environ, reason="needs the folder of real data, HF_LLM_DATA")
def test_a_real_archive_with_any_one_member_damaged_loses_that_one(tmp_path):
    whole = (REAL / "warc" / "dolma-sample-0000.warc.gz").read_bytes()
    starts = [match.start() for match in re.finditer(rb"\x1f\x8b\x08\x04\0\0\0\0\x02\x13", whole)]
    assert len(starts) == 48
    sound = list(warc.read_records(REAL / "warc" / "dolma-sample-0000.warc.gz", ReadErrors()))
    for at in starts[::7]:
        (tmp_path / "a.warc.gz").write_bytes(whole[: at + 60] + b"\xff" * 30 + whole[at + 90 :])
        errors = ReadErrors()
        assert len(list(warc.read_records(tmp_path / "a.warc.gz", errors))) == len(sound) - 1
        assert errors.dropped.total() == 1

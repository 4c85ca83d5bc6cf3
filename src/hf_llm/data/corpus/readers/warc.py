"""Turn web archives (WARC and WET, plain or gzip) into documents, one for each page in them.

A document is a `response` record with status 200 that holds HTML or plain text, or a `conversion` record (WET: already
text). Requests, metadata, revisits, redirects and images are not documents; they are counted as left out.

Records and their HTTP messages are read by fastwarc. The archive is cut into records in this module, because fastwarc
and warcio both stop at the first damaged gzip member and lose the rest of the file: after damage, reading continues at
the next record. Format: https://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/
"""

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hf_llm.core.extras import require_extras
from hf_llm.data.corpus.readers.document import RawDocument
from hf_llm.data.corpus.readers.html import PAGE_BYTES, decode_page, extract_in_subprocess
from hf_llm.data.files.read_errors import NO_TEXT, ReadErrors

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord

    from hf_llm.data.corpus.config import Source

RECORD_BYTES = 64 << 20  # a longer record is dropped, not held in memory
HEADER_BYTES = 64 << 10
CHUNK_BYTES = 1 << 20
EXCERPT_BYTES = 80
MAX_NEWLINES = 64  # looked at between two records
# Deflate cannot shrink anything more than 1,032 to one. Text comes to about 5 to one, a member of zeros to 1,030.
BOMB_RATIO = 300

_RECORD_START = b"WARC/"
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_MEMBER = b"\x1f\x8b\x08"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_GZIP_WINDOW_BITS = 31  # zlib's way to say: with a gzip header
_NEXT_RECORD = re.compile(rb"\r?\n\r?\nWARC/[01]\.\d+\r?\n")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_CONTENT_LENGTH = re.compile(rb"\ncontent-length[ \t]*:[ \t]*(\d{1,18})[ \t]*\r?(?:\n|$)", re.IGNORECASE)
_DOCUMENT_TYPE = re.compile(rb"\nwarc-type[ \t]*:[ \t]*(response|conversion)[ \t]*\r?\n", re.IGNORECASE)
_RECORD_TYPE = re.compile(rb"\nwarc-type[ \t]*:[ \t]*([a-z]{1,20})[ \t]*\r?\n", re.IGNORECASE)
_CONTENT_TYPE = re.compile(r"[\w.+-]{1,40}/[\w.+-]{1,60}")
_NEXT_RECORD_MAX_BYTES = 32  # as much of a match of it may lie before the end of what has been searched
_HTML_TYPES = {"text/html", "application/xhtml+xml"}


def read(path: Path, errors: ReadErrors, source: "Source", max_chars: int) -> Iterator[RawDocument]:
    """Yield the documents of one archive, in its order."""
    require_extras("web")
    for number, record in enumerate(read_records(path, errors), 1):
        if not _DOCUMENT_TYPE.search(record, 0, HEADER_BYTES):
            errors.records += 1
            errors.leave_out(f"WARC record of type {_find_type(record)}", f"{path}, record {number}")
            continue
        document = _convert_record(record, f"{path}, record {number}", errors)
        if document:
            yield document


def _find_type(record: bytes) -> str:
    """Return the type that a record states, in lower case; `unknown` if it states none."""
    match = _RECORD_TYPE.search(record, 0, HEADER_BYTES)
    return match[1].decode("ascii").lower() if match else "unknown"


def read_records(path: Path, errors: ReadErrors) -> Iterator[bytes]:
    """Yield every sound record of an archive, header and block; the others are counted in `errors`."""
    with open(path, "rb") as file:
        is_gzip = file.read(2) == _GZIP_MAGIC
        file.seek(0)
        if is_gzip:
            chunks = _decompress_members(file, path, errors)
        else:
            chunks = iter(lambda: file.read(CHUNK_BYTES), b"")

        window = _Window(chunks)
        while window.fill(1):
            length, problem = _measure_record(window)
            if problem is None:
                yield bytes(window.bytes[:length])
                window.drop(length)
                window.drop_newlines()
                continue

            start = window.position
            excerpt = bytes(window.bytes[:EXCERPT_BYTES])
            window.drop_to_next_record()
            has_gap = window.gap_position >= start  # then it is already counted, as a damaged member
            if not has_gap:
                unpacked = " unpacked" if is_gzip else ""
                _drop_record(errors, problem, f"{path}, byte {start:,}{unpacked}", excerpt)


class _Window:
    """The part of an archive that is being looked at. A `None` among the chunks is where something is missing."""

    def __init__(self, chunks: Iterator[bytes | None]):
        self.chunks = chunks
        self.bytes = bytearray()
        self.position = 0  # of the window in the unpacked archive
        self.gap_position = -1  # of the last missing piece

    def fill(self, size: int) -> bool:
        """Read on until the window holds `size` bytes; False if the archive ends before."""
        while len(self.bytes) < size:
            chunk = next(self.chunks, b"")
            if chunk == b"":
                return False
            if chunk is None:
                self.gap_position = self.position + len(self.bytes)
                chunk = b"\r\n\r\n"  # so that a record that begins after the gap is recognised
            self.bytes += chunk
        return True

    def drop(self, size: int) -> None:
        del self.bytes[:size]
        self.position += size

    def drop_newlines(self) -> None:
        while self.fill(1) and self.bytes[0] in b"\r\n":
            self.drop(len(self.bytes) - len(self.bytes.lstrip(b"\r\n")))

    def drop_to_next_record(self) -> None:
        """Move on to the next line that begins a record, by at least one byte, or to the end."""
        searched = 1
        while True:
            match = _NEXT_RECORD.search(self.bytes, max(searched - _NEXT_RECORD_MAX_BYTES, 0))
            if match:
                break
            searched = len(self.bytes)
            if searched > CHUNK_BYTES:
                self.drop(searched - _NEXT_RECORD_MAX_BYTES)
                searched = _NEXT_RECORD_MAX_BYTES
            if not self.fill(searched + 1):
                self.drop(len(self.bytes))
                return
        self.drop(match.start())
        self.drop_newlines()


def _measure_record(window: _Window) -> tuple[int, str | None]:
    """Return the bytes of the record at the window's start, and what is wrong with it (None if nothing is)."""
    window.fill(HEADER_BYTES)
    header = _HEADER_END.search(window.bytes, 0, HEADER_BYTES)
    if not window.bytes.startswith(_RECORD_START) or not header:
        return 0, "no WARC record"
    content_length = _CONTENT_LENGTH.search(window.bytes, 0, header.start())
    if not content_length:
        return 0, "no record length"
    length = header.end() + int(content_length[1])
    if length > RECORD_BYTES:
        return 0, f"record longer than {RECORD_BYTES >> 20} MiB"
    if not window.fill(length):
        return 0, "truncated record"

    # After a record come newlines, and then the next record or the end of the archive.
    window.fill(length + MAX_NEWLINES)
    after = bytes(window.bytes[length : length + MAX_NEWLINES])
    following = after.lstrip(b"\r\n")
    has_newlines = following != after
    if following and not (has_newlines and following.startswith(_RECORD_START)):
        return 0, "wrong record length"
    return length, None


def _decompress_members(file: IO[bytes], path: Path, errors: ReadErrors) -> Iterator[bytes | None]:
    """Yield the unpacked bytes of a file of gzip members, with None where a damaged one was dropped."""
    raw = file.read(CHUNK_BYTES)
    while raw:
        start = file.tell() - len(raw)
        member = zlib.decompressobj(_GZIP_WINDOW_BITS)
        unpacked_bytes = 0
        packed_bytes = 0
        problem = None
        while not member.eof and not problem:
            try:
                output = member.decompress(raw, CHUNK_BYTES)
            except zlib.error as error:
                problem = f"damaged gzip member ({error})"
                continue
            unpacked_bytes += len(output)
            packed_bytes += len(raw) - len(member.unconsumed_tail) - len(member.unused_data)
            if member.eof:
                raw = member.unused_data
            else:
                raw = member.unconsumed_tail or file.read(CHUNK_BYTES)

            if unpacked_bytes > RECORD_BYTES and unpacked_bytes > BOMB_RATIO * packed_bytes:
                problem = f"gzip member that unpacks to more than {BOMB_RATIO} times its size"
            elif not raw and not member.eof:
                problem = "truncated gzip member"
            if output:
                yield output

        if problem:
            _drop_record(errors, problem, f"{path}, byte {start:,}")
            raw = _find_next_member(raw, file)
            yield None
        raw = raw or file.read(CHUNK_BYTES)


def _find_next_member(raw: bytes, file: IO[bytes]) -> bytes:
    """Return what is read of a file from the next gzip member on that begins with a record; empty if there is none."""
    position = 1
    while True:
        position = raw.find(_GZIP_MEMBER, position)
        if position < 0 or len(raw) - position < HEADER_BYTES:
            more = file.read(CHUNK_BYTES)
            if more:
                kept = raw[1:][-2:] if position < 0 else raw[position:]
                raw = kept + more
                position = 0
                continue
            if position < 0:
                return b""
        if _unpacks_to_record(raw[position : position + HEADER_BYTES]):
            return raw[position:]
        position += 1


def _unpacks_to_record(raw: bytes) -> bool:
    try:
        return zlib.decompressobj(_GZIP_WINDOW_BITS).decompress(raw, len(_RECORD_START)) == _RECORD_START
    except zlib.error:
        return False


def _convert_record(block: bytes, where: str, errors: ReadErrors) -> RawDocument | None:
    """Make the document of a response or conversion record; None if it is not a page or is lost."""
    from fastwarc.warc import WarcRecord, conversion

    try:
        record = WarcRecord.from_bytes(block)
        is_text = record.record_type == conversion
    except OSError as error:
        _drop_record(errors, "malformed record header", where, str(error))
        return None

    if is_text:
        document = _convert_text_record(record, where, errors)
    else:
        document = _convert_response(block, where, errors)
    if document is None:
        return None

    document.url = (record.headers.get("WARC-Target-URI") or "").strip("<>")
    about = {"record": record.headers.get("WARC-Record-ID"), "date": record.headers.get("WARC-Date")}
    document.about = {name: value for name, value in about.items() if value} | document.about
    return document


def _convert_text_record(record: "WarcRecord", where: str, errors: ReadErrors) -> RawDocument | None:
    errors.records += 1
    text = decode_page(record.reader.read(), "utf-8")
    if not text.strip():
        errors.leave_out(NO_TEXT, where)
        return None
    about = {"content_type": "text/plain"}
    languages = record.headers.get("WARC-Identified-Content-Language")
    if languages:
        about["languages"] = languages
    return RawDocument(text, about=about)


def _convert_response(block: bytes, where: str, errors: ReadErrors) -> RawDocument | None:
    """Make the document of a response record; None if it is not a page (another status or type) or is lost."""
    record, body = _parse_http_message(block)
    if record is None or record.http_headers.status_code is None:
        _drop_record(errors, "malformed HTTP header", where)
        return None
    content_type = record.http_content_type or record.headers.get("WARC-Identified-Payload-Type") or ""
    errors.records += 1
    if record.http_headers.status_code != 200:
        errors.leave_out(f"response with status {record.http_headers.status_code}", where)
        return None
    if content_type not in {*_HTML_TYPES, "text/plain"}:
        named_type = content_type if _CONTENT_TYPE.fullmatch(content_type) else "unknown"
        errors.leave_out(f"response of type {named_type}", where)
        return None
    if body is None:
        errors.drop_record("undecodable content", where)
        return None
    if len(body) > PAGE_BYTES:
        errors.drop_record(f"page longer than {PAGE_BYTES >> 20} MiB", where)
        return None

    if content_type in _HTML_TYPES:
        document = extract_in_subprocess(body, where, errors, charset=record.http_charset)
    else:
        document = _convert_plain_text(body, record.http_charset, where, errors)
    if document:
        document.about["content_type"] = content_type
    return document


def _convert_plain_text(body: bytes, charset: str | None, where: str, errors: ReadErrors) -> RawDocument | None:
    text = decode_page(body, charset).strip()
    if not text:
        errors.leave_out(NO_TEXT, where)
        return None
    return RawDocument(text)


def _parse_http_message(block: bytes) -> tuple["WarcRecord | None", bytes | None]:
    """Return the record and the decoded body of its HTTP message.

    The record is None if the message's header cannot be read; the body is None if it cannot be decoded. Some crawlers
    keep the headers of the wire but store the body decoded: where the headers are wrong, it is taken as it is.
    """
    from fastwarc.warc import WarcRecord

    for decoding in ("all", "content", "transfer", "none"):
        record = WarcRecord.from_bytes(block)
        record.is_http = True  # a response to anything else has no status, and is not a page
        try:
            record.parse_http(auto_decode=decoding)
            if not record.http_headers:
                return None, None
            body = record.reader.read(PAGE_BYTES + 1)
        except OSError:
            continue
        is_zstd = decoding == "none" and body[:4] == _ZSTD_MAGIC
        is_gzip = body[:3] == _GZIP_MEMBER
        return record, None if is_zstd or is_gzip else body
    return None, None


def _drop_record(errors: ReadErrors, reason: str, where: str, excerpt: bytes | str = "") -> None:
    """Count a record that was read and is dropped."""
    errors.records += 1
    errors.drop_record(reason, where, excerpt)

"""Web archives, WARC and WET, plain or gzip: the pages in them, one document each.

A document is a `response` record with status 200 that holds HTML or plain text, or a `conversion` record (WET: text
already). Requests, metadata, revisits, redirects and images are none, and no faults either.

Records and their HTTP messages are read by fastwarc. The archive is cut into records here, because fastwarc and warcio
both end at the first damaged gzip member and with it lose the rest of the file: after damage reading goes on at the
next record. Format: https://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/
"""

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hf_llm.data.corpus.readers.document import Found
from hf_llm.data.corpus.readers.html import PAGE_BYTES, decoded, page_document
from hf_llm.data.files.read_errors import Faults

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord

    from hf_llm.data.corpus.sources import Source

RECORD_BYTES = 64 << 20  # a record longer than this is passed over, not held in memory
HEADER_BYTES = 64 << 10
CHUNK_BYTES = 1 << 20
# Deflate cannot shrink anything more than 1,032 to one. Text comes to about 5 to one, a member of zeros to 1,030.
BOMB_RATIO = 300

_START = b"WARC/"
_MEMBER = b"\x1f\x8b\x08"
_NEXT = re.compile(rb"\r?\n\r?\nWARC/[01]\.\d+\r?\n")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile(rb"\ncontent-length[ \t]*:[ \t]*(\d{1,18})[ \t]*\r?(?:\n|$)", re.IGNORECASE)
_TYPE = re.compile(rb"\nwarc-type[ \t]*:[ \t]*(response|conversion)[ \t]*\r?\n", re.IGNORECASE)
_HTML = {"text/html", "application/xhtml+xml"}


def read(path: Path, faults: Faults, source: "Source", max_chars: int) -> Iterator[Found]:
    """The documents of one archive, in its order."""
    for number, record in enumerate(records(path, faults), 1):
        if _TYPE.search(record, 0, HEADER_BYTES):
            found = _document(record, f"{path}, record {number}", faults)
            if found:
                yield found


def records(path: Path, faults: Faults) -> Iterator[bytes]:
    """Every sound record of an archive, header and block; the others are counted in `faults`."""
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        window = _Window(_inflated(file, path, faults) if zipped else iter(lambda: file.read(CHUNK_BYTES), b""))
        while window.fill(1):
            length, wrong = _extent(window)
            if wrong is None:
                yield bytes(window.bytes[:length])
                window.drop(length)
                window.drop_newlines()
                continue
            start, excerpt = window.position, bytes(window.bytes[:80])
            window.drop_to_next_record()
            if window.broken < start:  # else it is counted already, as a damaged member
                _lose(faults, wrong, f"{path}, byte {start:,}{' unpacked' if zipped else ''}", excerpt)


class _Window:
    """The part of an archive that is being looked at. A `None` among the chunks is where something is missing."""

    def __init__(self, chunks: Iterator[bytes | None]):
        self.chunks = chunks
        self.bytes = bytearray()
        self.position = 0  # of the window in the unpacked archive
        self.broken = -1  # position of the last missing piece

    def fill(self, size: int) -> bool:
        """Whether the window holds `size` bytes, having read on where it did not."""
        while len(self.bytes) < size:
            chunk = next(self.chunks, b"")
            if chunk == b"":
                return False
            if chunk is None:
                self.broken = self.position + len(self.bytes)
            self.bytes += b"\r\n\r\n" if chunk is None else chunk
        return True

    def drop(self, size: int) -> None:
        del self.bytes[:size]
        self.position += size

    def drop_newlines(self) -> None:
        while self.fill(1) and self.bytes[0] in b"\r\n":
            self.drop(len(self.bytes) - len(self.bytes.lstrip(b"\r\n")))

    def drop_to_next_record(self) -> None:
        """Move on to the next line that begins a record, at least one byte from here, or to the end."""
        searched = 1
        while not (match := _NEXT.search(self.bytes, max(searched - 32, 0))):
            searched = len(self.bytes)
            if searched > CHUNK_BYTES:
                self.drop(searched - 32)
                searched = 32
            if not self.fill(searched + 1):
                self.drop(len(self.bytes))
                return
        self.drop(match.start())
        self.drop_newlines()


def _extent(window: _Window) -> tuple[int, str | None]:
    """The bytes of the record at the window's start, and what is wrong with it (None where nothing is)."""
    window.fill(HEADER_BYTES)
    header = _HEADER_END.search(window.bytes, 0, HEADER_BYTES)
    if not window.bytes.startswith(_START) or not header:
        return 0, "no WARC record"
    claimed = _LENGTH.search(window.bytes, 0, header.start())
    if not claimed:
        return 0, "no record length"
    length = header.end() + int(claimed[1])
    if length > RECORD_BYTES:
        return 0, f"record longer than {RECORD_BYTES >> 20} MiB"
    if not window.fill(length):
        return 0, "truncated record"
    window.fill(length + 64)
    after = bytes(window.bytes[length : length + 64])
    follows = after.lstrip(b"\r\n")
    if follows and (follows == after or not follows.startswith(_START)):
        return 0, "wrong record length"
    return length, None


def _inflated(file: IO[bytes], path: Path, faults: Faults) -> Iterator[bytes | None]:
    """The unpacked bytes of a file of gzip members, with None where a damaged one was left out."""
    raw = file.read(CHUNK_BYTES)
    while raw:
        start, member, given, taken = file.tell() - len(raw), zlib.decompressobj(31), 0, 0
        wrong = None
        while not member.eof and not wrong:
            try:
                output = member.decompress(raw, CHUNK_BYTES)
            except zlib.error as error:
                wrong = f"damaged gzip member ({error})"
                continue
            given += len(output)
            taken += len(raw) - len(member.unconsumed_tail) - len(member.unused_data)
            raw = member.unused_data if member.eof else member.unconsumed_tail or file.read(CHUNK_BYTES)
            if given > RECORD_BYTES and given > BOMB_RATIO * taken:
                wrong = f"gzip member that unpacks to more than {BOMB_RATIO} times its size"
            elif not raw and not member.eof:
                wrong = "truncated gzip member"
            if output:
                yield output
        if wrong:
            _lose(faults, wrong, f"{path}, byte {start:,}")
            raw = _next_member(raw, file)
            yield None
        raw = raw or file.read(CHUNK_BYTES)


def _next_member(raw: bytes, file: IO[bytes]) -> bytes:
    """What is left of a file from the next gzip member that begins with a record; empty where there is none."""
    at = 1
    while True:
        at = raw.find(_MEMBER, at)
        if at < 0 or len(raw) - at < HEADER_BYTES:
            kept = raw[1:][-2:] if at < 0 else raw[at:]
            if more := file.read(CHUNK_BYTES):
                raw, at = kept + more, 0
                continue
            if at < 0:
                return b""
        if _unpacks_to_record(raw[at : at + HEADER_BYTES]):
            return raw[at:]
        at += 1


def _unpacks_to_record(raw: bytes) -> bool:
    try:
        return zlib.decompressobj(31).decompress(raw, len(_START)) == _START
    except zlib.error:
        return False


def _document(block: bytes, where: str, faults: Faults) -> Found | None:
    from fastwarc.warc import WarcRecord, conversion

    try:
        record = WarcRecord.from_bytes(block)
        is_text = record.record_type == conversion
    except OSError as error:
        return _lose(faults, "malformed record header", where, str(error))
    found = _converted(record, where, faults) if is_text else _response(block, where, faults)
    if found:
        found.url = (record.headers.get("WARC-Target-URI") or "").strip("<>")
        about = {"record": record.headers.get("WARC-Record-ID"), "date": record.headers.get("WARC-Date")}
        found.about = {name: value for name, value in about.items() if value} | found.about
    return found


def _converted(record: "WarcRecord", where: str, faults: Faults) -> Found | None:
    faults.records += 1
    text = decoded(record.reader.read(), "utf-8")
    if not text.strip():
        faults.drop("no_text", where)
        return None
    languages = record.headers.get("WARC-Identified-Content-Language")
    return Found(text, about={"content_type": "text/plain", **({"languages": languages} if languages else {})})


def _response(block: bytes, where: str, faults: Faults) -> Found | None:
    """The page of a response record; None for one that is none (another status or type) or is lost."""
    record, body = _message(block)
    if record is None or record.http_headers.status_code is None:
        return _lose(faults, "malformed HTTP header", where)
    kind = record.http_content_type or record.headers.get("WARC-Identified-Payload-Type") or ""
    if record.http_headers.status_code != 200 or kind not in {*_HTML, "text/plain"}:
        return None
    faults.records += 1
    if body is None or len(body) > PAGE_BYTES:
        faults.drop("undecodable content" if body is None else f"page longer than {PAGE_BYTES >> 20} MiB", where)
        return None
    if kind in _HTML:
        found = page_document(body, where, faults, charset=record.http_charset)
    elif text := decoded(body, record.http_charset).strip():
        found = Found(text)
    else:
        faults.drop("no_text", where)
        found = None
    if found:
        found.about["content_type"] = kind
    return found


def _message(block: bytes) -> tuple["WarcRecord | None", bytes | None]:
    """The record and the body of its HTTP message, unpacked; no record where the message's header cannot be read.

    Some crawlers keep the headers of the wire and store the body unpacked: where the headers lie, it is taken as it is.
    """
    from fastwarc.warc import WarcRecord

    for unpacking in ("all", "content", "transfer", "none"):
        record = WarcRecord.from_bytes(block)
        record.is_http = True  # a response to anything else has no status, and is no page
        try:
            record.parse_http(auto_decode=unpacking)
            if not record.http_headers:
                return None, None
            body = record.reader.read(PAGE_BYTES + 1)
        except OSError:
            continue
        packed = (unpacking == "none" and body[:4] in (b"\x28\xb5\x2f\xfd",)) or body[:3] == b"\x1f\x8b\x08"
        return record, None if packed else body
    return None, None


def _lose(faults: Faults, reason: str, where: str, excerpt: bytes | str = "") -> None:
    faults.records += 1
    faults.drop(reason, where, excerpt)

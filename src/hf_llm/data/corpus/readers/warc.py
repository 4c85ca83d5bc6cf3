"""Turn web archives (WARC, WET and ARC, plain, gzip or zstandard) into documents, one for each page in them.

A document is a `response` record with status 200 that holds HTML or plain text, a `resource` record of a page, or a
`conversion` record (WET: already text). Requests, metadata, revisits, redirects, images and answers of other protocols
(Heritrix stores those of DNS) are not documents; they are counted as left out. Lines may end in LF alone, as
ClueWeb09's do; the type of a page may be written in capitals, or be missing: then its first bytes tell.

HTTP messages are read by fastwarc. The archive is cut into records in this module, because fastwarc and warcio both
stop at the first damaged gzip member and lose the rest of the file: after damage, reading continues at the next record.
A record of an ARC archive, the older format, is given as the WARC record that it would be.
Formats: https://iipc.github.io/warc-specifications/specifications/warc-format/warc-1.1/,
https://archive.org/web/researcher/ArcFileFormat.php and, for the dictionary of a .warc.zst,
https://iipc.github.io/warc-specifications/specifications/warc-zstd/
"""

import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hf_llm.core.extras import require_extras
from hf_llm.data.corpus.readers.document import RawDocument
from hf_llm.data.corpus.readers.html import PAGE_BYTES, decode_page, extract_in_subprocess
from hf_llm.data.files.read_errors import NO_TEXT, ReadErrors
from hf_llm.data.files.text_encoding import decode_text

if TYPE_CHECKING:
    from fastwarc.warc import WarcRecord

    from hf_llm.data.corpus.config import Source

RECORD_BYTES = 64 << 20  # a longer record is dropped, not held in memory
HEADER_BYTES = 64 << 10
CHUNK_BYTES = 1 << 20
EXCERPT_BYTES = 80
ZSTD_PIECE_BYTES = 4096  # given to zstandard at a time: it may unpack to 128 MiB
MAX_NEWLINES = 64  # looked at between two records
# Deflate cannot shrink anything more than 1,032 to one. Text comes to about 5 to one, a member of zeros to 1,030.
BOMB_RATIO = 300

_RECORD_START = b"WARC/"
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_MEMBER = b"\x1f\x8b\x08"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_GZIP_WINDOW_BITS = 31  # zlib's way to say: with a gzip header
_ZSTD_DICTIONARY_FRAME = b"\x5d\x2a\x4d\x18"  # a skippable frame with the dictionary of the frames after it
_NEXT_RECORD = re.compile(rb"\r?\n\r?\nWARC/[01]\.\d+[ \t]*\r?\n")
_HEADER_END = re.compile(rb"\r?\n\r?\n")
_CONTENT_LENGTH = re.compile(rb"\ncontent-length[ \t]*:[ \t]*(\d{1,18})[ \t]*\r?(?:\n|$)", re.IGNORECASE)
_CONTENT_TYPE = re.compile(r"[\w.+-]{1,40}/[\w.+-]{1,60}")
_RECORD_TYPE = re.compile(r"[a-z]{1,20}")
_NEXT_RECORD_MAX_BYTES = 32  # as much of a match of it may lie before the end of what has been searched
_HEADER_FIELD = re.compile(rb"([^\s:]+)[ \t]*:[ \t]*(.*)")
_DOCUMENT_KINDS = {"response", "resource", "conversion"}

_ARC_START = b"filedesc://"
# URL, IP address, date and type; in version 2 more fields; the length of what follows.
_ARC_HEADER = re.compile(
    rb"(?P<url>[a-z][a-z\d+.-]*:[^\r\n]*?) (?P<ip>\S+) (?P<date>\d{8,17}) (?P<type>[^\r\n]*?) ?"
    rb"(?P<length>\d{1,18})[ \t]*\r?\n",
    re.IGNORECASE,
)
_NEXT_ARC_RECORD = re.compile(rb"\n(?=[a-z][a-z\d+.-]*:[^\r\n]* [\d.:]+ \d{8,17} [^\r\n]*\d\r?\n)", re.IGNORECASE)
_ARC_HEADER_BYTES = 4096

_HTTP_RECORD = b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http\r\nContent-Length: %d\r\n\r\n"
_HTML_TYPES = {"text/html", "application/xhtml+xml", "application/xhtml", "text/xhtml", "text/htm", "html"}
_TEXT_TYPES = {"text/plain", "text", "plain/text"}
# Types that say nothing of what a body is, beside none at all.
_EMPTY_TYPES = {"", "application/octet-stream", "unknown/unknown", "application/unknown", "unknown", "content/unknown"}
_HTML_START = re.compile(
    rb"(?:\xef\xbb\xbf)?(?:\s|<!--.*?-->|<\?xml[^>]*>)*<(?:!doctype\s+html|html|head|body|title|meta)\b",
    re.IGNORECASE | re.DOTALL,
)
SNIFFED_BYTES = 2048  # of a body without a type


def read(path: Path, errors: ReadErrors, source: "Source", max_chars: int) -> Iterator[RawDocument]:
    """Yield the documents of one archive, in its order."""
    require_extras("web")
    for number, record in enumerate(read_records(path, errors), 1):
        where = f"{path}, record {number}"
        headers, payload = _split_record(record)
        kind = headers.get("warc-type", "").lower()
        errors.records += 1
        if not kind:
            errors.drop_record("no record type", where, record[:EXCERPT_BYTES])
        elif kind == "continuation":
            errors.drop_record("continuation of a divided record", where)
        elif kind in _DOCUMENT_KINDS:
            document = _convert_record(kind, headers, payload, where, errors)
            if document:
                yield document
        else:
            named_kind = kind if _RECORD_TYPE.fullmatch(kind) else "unknown"
            errors.leave_out(f"WARC record of type {named_kind}", where)


def read_records(path: Path, errors: ReadErrors) -> Iterator[bytes]:
    """Yield every sound record of an archive, header and block; the others are counted in `errors`."""
    with open(path, "rb") as file:
        magic = file.read(4)
        file.seek(0)
        is_compressed = True
        if magic[:2] == _GZIP_MAGIC:
            chunks = _decompress_members(file, path, errors)
        elif magic in (_ZSTD_MAGIC, _ZSTD_DICTIONARY_FRAME):
            chunks = _decompress_frames(file, path, errors)
        else:
            chunks = iter(lambda: file.read(CHUNK_BYTES), b"")
            is_compressed = False

        window = _Window(chunks)
        window.drop_newlines()
        window.fill(len(_ARC_START))
        is_arc = window.bytes.startswith(_ARC_START)
        while window.fill(1):
            length, problem = _measure_arc_record(window) if is_arc else _measure_record(window)
            if problem is None:
                record = bytes(window.bytes[:length])
                yield _convert_arc_record(record) if is_arc else record
                window.drop(length)
                window.drop_newlines()
                continue

            start = window.position
            excerpt = bytes(window.bytes[:EXCERPT_BYTES])
            window.drop_to_next_record(_NEXT_ARC_RECORD if is_arc else _NEXT_RECORD)
            has_gap = window.gap_position >= start  # then it is already counted, as a damaged member
            if not has_gap:
                unpacked = " unpacked" if is_compressed else ""
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

    def drop_to_next_record(self, pattern: re.Pattern[bytes]) -> None:
        """Move on to the next line that begins a record, by at least one byte, or to the end."""
        overlap = _ARC_HEADER_BYTES if pattern is _NEXT_ARC_RECORD else _NEXT_RECORD_MAX_BYTES
        searched = 1
        while True:
            match = pattern.search(self.bytes, max(searched - overlap, 0))
            if match:
                break
            searched = len(self.bytes)
            if searched > CHUNK_BYTES:
                self.drop(searched - overlap)
                searched = overlap
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

    # After a record come newlines, and then the next record or the end of the archive. Some writers forget them.
    window.fill(length + MAX_NEWLINES)
    following = bytes(window.bytes[length : length + MAX_NEWLINES]).lstrip(b"\r\n")
    if following and not following.startswith(_RECORD_START):
        return 0, "wrong record length"
    return length, None


def _measure_arc_record(window: _Window) -> tuple[int, str | None]:
    """Return the bytes of the ARC record at the window's start, and what is wrong with it (None if nothing is)."""
    window.fill(_ARC_HEADER_BYTES)
    header = _ARC_HEADER.match(window.bytes, 0, _ARC_HEADER_BYTES)
    if not header:
        return 0, "no ARC record"
    length = header.end() + int(header["length"])
    if length > RECORD_BYTES:
        return 0, f"record longer than {RECORD_BYTES >> 20} MiB"
    if not window.fill(length):
        return 0, "truncated record"

    window.fill(length + _ARC_HEADER_BYTES)
    following = bytes(window.bytes[length : length + _ARC_HEADER_BYTES]).lstrip(b"\r\n")
    if following and not _ARC_HEADER.match(following):
        return 0, "wrong record length"
    return length, None


def _convert_arc_record(record: bytes) -> bytes:
    """Convert an ARC record to the WARC record that it would be. The archive's description becomes `warcinfo`."""
    header = _ARC_HEADER.match(record)
    assert header is not None, "the record has been measured"
    payload = record[header.end() :]
    kind = b"warcinfo" if header["url"].startswith(_ARC_START) else b"response"
    content_type = header["type"].partition(b" ")[0]
    if payload.startswith(b"HTTP/"):
        content_type = b"application/http"
    digits = header["date"].decode().ljust(14, "0")
    date = f"{digits[:4]}-{digits[4:6]}-{digits[6:8]}T{digits[8:10]}:{digits[10:12]}:{digits[12:14]}Z"
    fields = (
        b"WARC/1.0\r\nWARC-Type: %s\r\nWARC-Target-URI: %s\r\nWARC-Date: %s\r\n"
        b"Content-Type: %s\r\nContent-Length: %d\r\n\r\n"
    )
    return fields % (kind, header["url"], date.encode(), content_type, len(payload)) + payload


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


def _decompress_frames(file: IO[bytes], path: Path, errors: ReadErrors) -> Iterator[bytes | None]:
    """Yield the unpacked bytes of a file of zstandard frames, with None where a damaged one was dropped.

    The frames may share a dictionary, which the file then begins with.
    """
    import zstandard

    dictionary = _read_zstd_dictionary(file)
    decompressor = zstandard.ZstdDecompressor(dict_data=dictionary)
    raw = file.read(CHUNK_BYTES)
    while raw:
        start = file.tell() - len(raw)
        frame: Any = decompressor.decompressobj()
        unpacked_bytes = 0
        packed_bytes = 0
        problem = None
        while not frame.eof and not problem:
            piece = raw[:ZSTD_PIECE_BYTES]
            raw = raw[ZSTD_PIECE_BYTES:]
            try:
                output = frame.decompress(piece)
            except zstandard.ZstdError as error:
                problem = f"damaged zstandard frame ({error})"
                raw = piece[len(_ZSTD_MAGIC) :] + raw  # in which the next frame may begin
                continue
            unpacked_bytes += len(output)
            packed_bytes += len(piece)
            if frame.eof:
                raw = frame.unused_data + raw
            raw = raw or file.read(CHUNK_BYTES)

            if unpacked_bytes > RECORD_BYTES and unpacked_bytes > BOMB_RATIO * packed_bytes:
                problem = f"zstandard frame that unpacks to more than {BOMB_RATIO} times its size"
            elif not raw and not frame.eof:
                problem = "truncated zstandard frame"
            if output:
                yield output

        if problem:
            _drop_record(errors, problem, f"{path}, byte {start:,}")
            raw = _find_next_frame(raw, file)
            yield None


def _read_zstd_dictionary(file: IO[bytes]) -> Any:
    """Read the dictionary that a .warc.zst may begin with; None if it begins with a record."""
    import zstandard

    if file.read(4) != _ZSTD_DICTIONARY_FRAME:
        file.seek(0)
        return None
    size = int.from_bytes(file.read(4), "little")
    content = file.read(min(size, RECORD_BYTES))
    if content.startswith(_ZSTD_MAGIC):
        content = zstandard.ZstdDecompressor().decompress(content, max_output_size=RECORD_BYTES)
    return zstandard.ZstdCompressionDict(content)


def _find_next_frame(raw: bytes, file: IO[bytes]) -> bytes:
    """Return what is read of a file from the next zstandard frame on; empty if there is none."""
    while True:
        position = raw.find(_ZSTD_MAGIC)
        if position >= 0:
            return raw[position:]
        more = file.read(CHUNK_BYTES)
        if not more:
            return b""
        raw = raw[-3:] + more


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


def _split_record(record: bytes) -> tuple[dict[str, str], bytes]:
    """Split a record into the fields of its header, by their names in small letters, and its block."""
    end = _HEADER_END.search(record)
    assert end is not None, "the record has been measured"
    headers: dict[str, str] = {}
    name = ""
    for line in record[: end.start()].splitlines()[1:]:
        field = _HEADER_FIELD.match(line)
        if line[:1] in b" \t" and name:
            headers[name] += " " + line.strip().decode("utf-8", "replace")  # a long value goes on in the next line
        elif field:
            name = field[1].decode("utf-8", "replace").lower()
            headers.setdefault(name, field[2].strip().decode("utf-8", "replace"))
    return headers, record[end.end() :]


def _convert_record(
    kind: str, headers: dict[str, str], payload: bytes, where: str, errors: ReadErrors
) -> RawDocument | None:
    """Make the document of a record; None if it is not a page or is lost."""
    content_type, charset = _parse_content_type(headers.get("content-type", ""))
    is_http = content_type == "application/http" or (not content_type and kind == "response")
    url = headers.get("warc-target-uri", "").strip("<>")
    if kind == "conversion":
        document = _convert_text_record(headers, payload, where, errors)
    elif is_http:
        document = _convert_http_message(headers, payload, where, errors)
    elif url.lower().startswith(("http:", "https:", "ftp:", "file:")):
        document = _convert_body(payload, content_type, charset, where, errors)
    else:
        scheme = url.partition(":")[0].lower()
        errors.leave_out(
            f"WARC record of {scheme if scheme.isalnum() else 'no'} address", where
        )  # DNS, the crawler's log
        return None
    if document is None:
        return None

    document.url = url
    about = {"record": headers.get("warc-record-id"), "date": headers.get("warc-date")}
    document.about = {name: value for name, value in about.items() if value} | document.about
    return document


def _convert_text_record(headers: dict[str, str], payload: bytes, where: str, errors: ReadErrors) -> RawDocument | None:
    text = decode_page(payload, "utf-8")
    if not text.strip():
        errors.leave_out(NO_TEXT, where)
        return None
    about = {"content_type": "text/plain"}
    languages = headers.get("warc-identified-content-language")
    if languages:
        about["languages"] = languages
    return RawDocument(text, about=about)


def _convert_http_message(
    headers: dict[str, str], payload: bytes, where: str, errors: ReadErrors
) -> RawDocument | None:
    """Make the document of a response; None if it is not a page (another status or type) or is lost."""
    record, body = _parse_http_message(payload)
    if record is None or record.http_headers.status_code is None:
        errors.drop_record("malformed HTTP header", where)
        return None
    if record.http_headers.status_code != 200:
        errors.leave_out(f"response with status {record.http_headers.status_code}", where)
        return None
    stated_type = record.http_headers.get("Content-Type") or headers.get("warc-identified-payload-type") or ""
    content_type, charset = _parse_content_type(stated_type)
    if body is None:
        if _is_page_type(content_type) or content_type in _EMPTY_TYPES:
            errors.drop_record("undecodable content", where)
        else:
            _leave_out_type(content_type, where, errors)
        return None
    return _convert_body(body, content_type, record.http_charset or charset, where, errors)


def _parse_content_type(value: str) -> tuple[str, str | None]:
    """Return a type in small letters, without its parameters, and the charset among them."""
    first, *parameters = re.split("[;,]", value.lower())
    charset = None
    for parameter in parameters:
        name, _, stated = parameter.partition("=")
        if name.strip() == "charset":
            charset = stated.strip().strip("\"'") or None
    return first.strip().strip("\"'"), charset


def _is_page_type(content_type: str) -> bool:
    return content_type in _HTML_TYPES | _TEXT_TYPES


def _convert_body(
    body: bytes, content_type: str, charset: str | None, where: str, errors: ReadErrors
) -> RawDocument | None:
    """Make the document of a page; None if it is of another type or is lost."""
    if content_type in _EMPTY_TYPES:
        content_type = _detect_type(body)
    if not _is_page_type(content_type):
        _leave_out_type(content_type, where, errors)
        return None
    if len(body) > PAGE_BYTES:
        errors.drop_record(f"page longer than {PAGE_BYTES >> 20} MiB", where)
        return None
    if content_type in _HTML_TYPES:
        document = extract_in_subprocess(body, where, errors, charset=charset)
    else:
        document = _convert_plain_text(body, charset, where, errors)
    if document:
        document.about["content_type"] = content_type
    return document


def _leave_out_type(content_type: str, where: str, errors: ReadErrors) -> None:
    named_type = content_type if _CONTENT_TYPE.fullmatch(content_type) else "unknown"
    errors.leave_out(f"response of type {named_type}", where)


def _detect_type(body: bytes) -> str:
    """Return the type of a body by its first bytes: a page, plain text, or empty for anything else."""
    start = body[:SNIFFED_BYTES]
    if _HTML_START.match(start):
        return "text/html"
    is_text = bool(start.strip()) and decode_text(start) is not None
    return "text/plain" if is_text else ""


def _convert_plain_text(body: bytes, charset: str | None, where: str, errors: ReadErrors) -> RawDocument | None:
    text = decode_page(body, charset).strip()
    if not text:
        errors.leave_out(NO_TEXT, where)
        return None
    return RawDocument(text)


def _parse_http_message(payload: bytes) -> tuple["WarcRecord | None", bytes | None]:
    """Return the record and the decoded body of an HTTP message.

    The record is None if the message's header cannot be read; the body is None if it cannot be decoded. Some crawlers
    keep the headers of the wire but store the body decoded: where the headers are wrong, it is taken as it is.
    """
    from fastwarc.warc import WarcRecord

    # The lines of a header have to end in CR LF for fastwarc.
    header_end = _HEADER_END.search(payload, 0, HEADER_BYTES)
    if header_end:
        header = re.sub(rb"\r?\n", b"\r\n", payload[: header_end.start()])
        if b"\r\n" not in header:
            header += b"\r\nX-No-Header: 1"  # it takes a status line alone for none
        payload = header + b"\r\n\r\n" + payload[header_end.end() :]
    block = _HTTP_RECORD % len(payload) + payload

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

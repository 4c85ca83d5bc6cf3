"""Turn text and code files into documents.

A file is never dropped for its length. A file of at most `max_chars` characters is one document. A longer one is cut,
before a heading or after a blank line, into pieces of about `PIECE_CHARS` characters: a single large file
(tinyshakespeare, a book) has to give hundreds of documents for the split by document hash to mean anything. A title
line as in wikitext (` = Title = `) and a line `<|endoftext|>` always start a new document.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.files.tabular import count_damage, decode_utf8, open_file

PIECE_CHARS = 10_000
LINE_BYTES = 1 << 20  # read at a time of a longer line
PEEK_BYTES = 4096  # looked at for a zero byte, which no text has

_TITLE = re.compile(r" = [^=\s].* = $")
_HEADING = re.compile(r"#{1,6} \S|\f")
_SEPARATOR = "<|endoftext|>"


def read_text_documents(path: Path, max_chars: int, errors: ReadErrors) -> Iterator[str]:
    """Yield the documents of a text file. Lines that are not UTF-8 are dropped and counted."""
    lines = _read_text_lines(path, errors)

    # Only as much of the file is held as tells whether it fits in one document.
    first_lines = []
    size = 0
    for line in lines:
        first_lines.append(line)
        size += len(line)
        if size > max_chars:
            break

    target = max_chars if size <= max_chars else PIECE_CHARS
    yield from join_into_pieces(chain(first_lines, lines), max_chars, target)


def read_code_documents(path: Path, max_chars: int, errors: ReadErrors) -> Iterator[str]:
    """Return the documents of a code file. A file that is binary or not UTF-8 is dropped whole, and counted."""
    errors.records += 1
    with open_file(path) as file:
        content = file.read()
    if b"\0" in content:
        errors.drop_record("binary", str(path))
        return iter(())
    text = decode_utf8(content)
    if text is None:
        errors.drop_record("not UTF-8", str(path))
        return iter(())
    return split_text(text, max_chars)


def split_text(text: str, max_chars: int) -> Iterator[str]:
    """Split a text into documents: one if it has at most `max_chars` characters, else several pieces."""
    target = max_chars if len(text) <= max_chars else PIECE_CHARS
    return join_into_pieces(text.splitlines(keepends=True), max_chars, target)


def join_into_pieces(lines: Iterable[str], max_chars: int, target: int) -> Iterator[str]:
    """Join lines into pieces of at most `max_chars` characters, cut at the first good place after `target`."""
    piece = []
    size = 0
    after_blank_line = False
    for line in _split_long_lines(lines, max_chars):
        is_separator = line.strip() == _SEPARATOR
        is_title = _TITLE.match(line.rstrip("\r\n"))
        is_good_place = size >= target and (after_blank_line or _HEADING.match(line))
        is_too_long = size + len(line) > max_chars

        if is_separator or is_title or is_good_place or is_too_long:
            yield from _join_piece(piece)
            piece = []
            size = 0
        if not is_separator:
            piece.append(line)
            size += len(line)
        after_blank_line = not line.strip()
    yield from _join_piece(piece)


def _join_piece(piece: list[str]) -> Iterator[str]:
    """Yield the text of a piece, unless it is blank."""
    text = "".join(piece)
    if text.strip():
        yield text


def _split_long_lines(lines: Iterable[str], max_chars: int) -> Iterator[str]:
    """Yield the lines; those longer than `max_chars` are split at a space in their second half, if there is one."""
    for line in lines:
        while len(line) > max_chars:
            after_space = line.rfind(" ", max_chars // 2, max_chars) + 1
            end = after_space or max_chars
            yield line[:end]
            line = line[end:]
        yield line


def _read_text_lines(path: Path, errors: ReadErrors) -> Iterator[str]:
    with count_damage(path, errors), open_file(path) as file:
        if b"\0" in file.peek(PEEK_BYTES)[:PEEK_BYTES]:
            errors.records += 1
            errors.drop_record("binary", str(path))
            return

        number = 0
        while line := file.readline(LINE_BYTES):
            while not line.endswith(b"\n") and _splits_character(line, file.peek(1)[:1]):
                line += file.read(1)
            number += 1
            errors.records += 1
            text = decode_utf8(line)
            if text is None:
                errors.drop_record("not UTF-8", f"{path}, line {number}", line)
            else:
                yield text


def _splits_character(line: bytes, next_byte: bytes) -> bool:
    """Whether a line cut off at `LINE_BYTES` ends within a character of UTF-8."""
    is_continuation = bool(next_byte) and next_byte[0] & 0xC0 == 0x80
    return is_continuation and len(line) < LINE_BYTES + 3

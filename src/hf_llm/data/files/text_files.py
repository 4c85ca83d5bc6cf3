"""Text and code files, cut into documents.

A file is never dropped for its length. One of at most `max_chars` is one document. A longer one is cut, before a
heading or after a blank line, into pieces of about `PIECE_CHARS` characters: of a single large file (tinyshakespeare, a
book) hundreds of documents are needed for the split by document hash to mean anything. A title line as wikitext has it
(` = Title = `) and a line `<|endoftext|>` start a new document always.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from hf_llm.data.files.read_errors import Faults
from hf_llm.data.files.tabular import damage_counted, decoded, opened

PIECE_CHARS = 10_000
LINE_BYTES = 1 << 20

_TITLE = re.compile(r" = [^=\s].* = $")
_HEADING = re.compile(r"#{1,6} \S|\f")
_SEPARATOR = "<|endoftext|>"


def text_documents(path: Path, max_chars: int, faults: Faults) -> Iterator[str]:
    """The documents of a text file. Lines that are not UTF-8 are dropped and counted."""
    lines, first, size = _text_lines(path, faults), [], 0
    for line in lines:
        first.append(line)
        size += len(line)
        if size > max_chars:
            break
    yield from pieces(chain(first, lines), max_chars, max_chars if size <= max_chars else PIECE_CHARS)


def code_documents(path: Path, max_chars: int, faults: Faults) -> Iterator[str]:
    """The documents of a code file. One that is binary or not UTF-8 is dropped whole: half a program is none."""
    faults.records += 1
    with opened(path) as file:
        content = file.read()
    text = decoded(content)
    if b"\0" in content or text is None:
        faults.drop("binary" if b"\0" in content else "not UTF-8", str(path))
        return iter(())
    return cut(text, max_chars)


def cut(text: str, max_chars: int) -> Iterator[str]:
    """A text as documents: whole where it has at most `max_chars` characters, else in pieces."""
    return pieces(text.splitlines(keepends=True), max_chars, max_chars if len(text) <= max_chars else PIECE_CHARS)


def pieces(lines: Iterable[str], max_chars: int, target: int) -> Iterator[str]:
    """Join lines to pieces of at most `max_chars` characters, cut at the first good place after `target`."""
    piece, size, blank = [], 0, False
    for line in _bounded(lines, max_chars):
        separator = line.strip() == _SEPARATOR
        good_place = size >= target and (blank or _HEADING.match(line))
        if separator or good_place or size + len(line) > max_chars or _TITLE.match(line.rstrip("\r\n")):
            yield from _joined(piece)
            piece, size = [], 0
        if not separator:
            piece.append(line)
            size += len(line)
        blank = not line.strip()
    yield from _joined(piece)


def _joined(piece: list[str]) -> Iterator[str]:
    text = "".join(piece)
    if text.strip():
        yield text


def _bounded(lines: Iterable[str], max_chars: int) -> Iterator[str]:
    """The lines, those longer than `max_chars` cut at a space."""
    for line in lines:
        while len(line) > max_chars:
            cut = line.rfind(" ", max_chars // 2, max_chars) + 1 or max_chars
            yield line[:cut]
            line = line[cut:]
        yield line


def _text_lines(path: Path, faults: Faults) -> Iterator[str]:
    with damage_counted(path, faults), opened(path) as file:
        if b"\0" in file.peek(4096)[:4096]:
            faults.records += 1
            faults.drop("binary", str(path))
            return
        number = 0
        while line := file.readline(LINE_BYTES):
            while not line.endswith(b"\n") and _inside_character(line, file.peek(1)[:1]):
                line += file.read(1)
            number += 1
            faults.records += 1
            text = decoded(line)
            if text is None:
                faults.drop("not UTF-8", f"{path}, line {number}", line)
            else:
                yield text


def _inside_character(line: bytes, following: bytes) -> bool:
    """Whether a line cut off at `LINE_BYTES` ends within a character of UTF-8."""
    return bool(following) and following[0] & 0xC0 == 0x80 and len(line) < LINE_BYTES + 3

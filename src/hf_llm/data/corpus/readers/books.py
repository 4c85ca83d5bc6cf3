"""Plain-text books turned into paragraphs: Project Gutenberg's, and what a scanner or a printer's page has left.

The header and licence of Project Gutenberg are taken off (their marks since 1991), page numbers and running headers
too; lines broken by hand are joined to paragraphs, words divided at a line's end to words. Verse, tables and indented
blocks keep their lines.
"""

import codecs
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm.data.corpus.readers.document import Found
from hf_llm.data.files.read_errors import Faults
from hf_llm.data.files.tabular import count_damage, open_file
from hf_llm.data.files.text_files import cut

if TYPE_CHECKING:
    from hf_llm.data.corpus.sources import Source

BOOK_BYTES = 64 << 20  # a text longer than this is no book: the longest at Project Gutenberg has about 6 MB

_FIELD = re.compile(r"(Title|Author|Language|Release Date|Character set encoding)\s*:\s*(.*)", re.IGNORECASE)
_OLD_TITLE = re.compile(r"Project Gutenberg(?:['’]s)?\s+(?:(?:Etext|EBook) of\s+)?(.+?),?\s+by\s+(.+)", re.IGNORECASE)
_NUMBER = re.compile(r"\[?(?:EBook|Etext)\s+#\s?(\d+)", re.IGNORECASE)
_START = re.compile(r"\W*START OF (?:THE|THIS) PROJECT GUTENBERG|\*END\W*THE SMALL PRINT", re.IGNORECASE)
_END = re.compile(
    r"\W*END OF (?:THE |THIS )?PROJECT GUTENBERG|\*{3}\s*START\W*THE SMALL PRINT|<<THIS ELECTRONIC VERSION",
    re.IGNORECASE,
)
_CREDIT = re.compile(r"(?:This )?(?:Produced|Prepared|E-?text|Transcribed|HTML version)\b.*\bby\b", re.IGNORECASE)
_LANGUAGES = {
    "english": "en", "french": "fr", "german": "de", "spanish": "es", "italian": "it", "portuguese": "pt",
    "dutch": "nl", "finnish": "fi", "swedish": "sv", "danish": "da", "norwegian": "no", "polish": "pl", "latin": "la",
    "greek": "el", "hungarian": "hu", "czech": "cs", "russian": "ru", "chinese": "zh", "japanese": "ja",
    "esperanto": "eo", "catalan": "ca", "welsh": "cy", "tagalog": "tl", "icelandic": "is",
}  # fmt: skip

_PAGE_NUMBER = re.compile(r"\W{0,3}(?:(?:page|p\.|pg\.?)\s*)?(\d{1,4})\W{0,3}", re.IGNORECASE)
_NUMBERED_HEADER = re.compile(r"(?:(\d{1,4})\W+)?([^a-z\d]*[A-Z][^a-z\d]*[A-Z][^a-z\d]*?)(?:\W+(\d{1,4}))?\W*")
_BULLET = re.compile(r"\s*[•▪◦‣∙●■]\s*\S")
_INLINE_PAGE = re.compile(r"[\[{](?:pg|page|p\.)\.?\s*(?:\d+|[ivxlc]+)[\]}]\s?", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?:;][\"'”’)\]*_]*$")
_WORD = re.compile(r"[^\W\d_]+(?:[-'’][^\W\d_]+)*")
_HYPHENS = ("-", "\xad", "¬", "\u2010")
_DIVIDED = re.compile(rf"([^\W\d_]+(?:-[^\W\d_]+)*)[{''.join(_HYPHENS)}]$")


def read(path: Path, faults: Faults, source: "Source", max_chars: int) -> Iterator[Found]:
    """The pieces of one book, each with what the header says: title, author, language, release."""
    faults.records += 1
    content = b""
    with count_damage(path, faults), open_file(path) as file:
        content = file.read(BOOK_BYTES + 1)
    if len(content) > BOOK_BYTES:
        return faults.drop(f"larger than {BOOK_BYTES >> 20} MiB", str(path))
    text = decoded_book(content)
    if text is None:
        return faults.drop("binary", str(path))
    header, body = without_gutenberg(text.splitlines())
    about = header_fields(header)
    language = _LANGUAGES.get(about.get("language", "").split(",")[0].strip().lower(), "")
    number = _NUMBER.search("\n".join(header))
    url = f"https://www.gutenberg.org/ebooks/{number[1]}" if number else ""
    for piece in cut(mended(without_page_lines(body)), max_chars):
        yield Found(piece, url=url, language=language, about=dict(about))


def decoded_book(content: bytes) -> str | None:
    """The text of a book in UTF-8, UTF-16 or the encoding its header names, Windows' Latin-1 otherwise.

    None where it is no text.
    """
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    if b"\0" in content:
        return None
    named = re.search(rb"Character set encoding:\s*([\w -]+)", content[:10_000], re.IGNORECASE)
    names = ["utf-8-sig", named[1].decode().strip().replace("ISO Latin-1", "latin-1") if named else "", "cp1252"]
    for name in names:
        try:
            return content.decode(name)
        except (UnicodeDecodeError, LookupError):
            continue
    return content.decode("latin-1")


def without_gutenberg(lines: list[str]) -> tuple[list[str], list[str]]:
    """The header's lines and the book's, the licence left out. A book that is not theirs is all body."""
    starts = [i for i, line in enumerate(lines[: len(lines) // 2 + 1]) if _START.match(line)]
    start = starts[-1] + 1 if starts else 0
    if starts and "***" not in lines[start - 1].rstrip()[3:] and start < len(lines) and "***" in lines[start]:
        start += 1  # the title runs over into a second line of the mark
    ends = (i for i in range(start, len(lines)) if _END.match(lines[i]))
    body = lines[start : next(ends, len(lines))]
    return lines[:start], _without_credits(body) if starts else body


def _without_credits(lines: list[str]) -> list[str]:
    """The lines without a first paragraph that only says who made the file."""
    first = next((i for i, line in enumerate(lines) if line.strip()), 0)
    if not lines or not _CREDIT.match(lines[first].strip()):
        return lines
    return lines[next((i for i in range(first, len(lines)) if not lines[i].strip()), len(lines)) :]


def header_fields(header: list[str]) -> dict[str, str]:
    """Title, author, language and release of a header, as far as it tells them."""
    about, key = {}, ""
    for line in header:
        if match := _FIELD.match(line.strip()):
            key = {"release date": "release"}.get(match[1].lower(), match[1].lower())
            about.setdefault(key, match[2].strip())
        elif key and line[:1].isspace() and line.strip():
            about[key] += " " + line.strip()
        else:
            key = ""
    about.pop("character set encoding", None)
    if "release" in about:
        about["release"] = about["release"].split("[")[0].strip()
    if "title" not in about and header and (match := _OLD_TITLE.search(" ".join(header[:3]).split("***")[0])):
        about |= {"title": match[1].strip(), "author": re.split(r"\s{2,}|\*", match[2])[0].strip()}
    return {key: value for key, value in about.items() if value}


def without_page_lines(lines: list[str]) -> list[str]:
    """The lines without page numbers and running headers, paragraphs that go on over a page put together."""
    lines = [_INLINE_PAGE.sub("", line) for line in lines]
    pages, page = [], []
    breaks = _page_lines(lines)
    for i, line in enumerate(lines):
        before, *rest = line.split("\f")
        if i not in breaks:
            page.append(before)
        for part in rest if i not in breaks else [""]:
            pages.append(page)
            page = [part] if part else []
    return joined_pages(without_running_lines([*pages, page]))


def _page_lines(lines: list[str]) -> set[int]:
    """Where a line is nothing but a page's number, or a header with the number: a rising row of them.

    Numbers of chapters and poems rise too, but always after the end of a sentence; a page ends anywhere.
    """
    found = []
    for i, line in enumerate(lines):
        number = _PAGE_NUMBER.fullmatch(line.strip())
        header = None if number else _NUMBERED_HEADER.fullmatch(line.strip())
        if number:
            found.append((i, int(number[1])))
        elif header and (header[1] or header[3]) and len(line.strip()) > 4:
            found.append((i, int(header[1] or header[3])))
    rising = {i for (_, a), (i, b) in pairwise(found) if 0 < b - a <= 2}
    rising |= {i for (i, a), (_, b) in pairwise(found) if 0 < b - a <= 2}
    if len(rising) < 3:
        return set()
    before = [next((lines[j] for j in range(i - 1, -1, -1) if lines[j].strip()), "") for i in sorted(rising)]
    within = sum(not _SENTENCE_END.search(line.rstrip()) for line in before[1:])
    return rising if within >= 0.2 * len(before) else set()


def without_running_lines(pages: list[list[str]]) -> list[list[str]]:
    """Pages without the headers, footers and numbers that stand at the same end of three pages and a fifth of them."""
    needed = max(3, len(pages) // 5)
    keys = [[_edge_keys(page, end) for page in pages] for end in (0, -1)]
    counts = [Counter(key for found in side for key in found.values()) for side in keys]
    kept = []
    for page, *sides in zip(pages, *keys, strict=True):
        out = {i for side, count in zip(sides, counts, strict=True) for i, key in side.items() if count[key] >= needed}
        kept.append([line for i, line in enumerate(page) if i not in out])
    return kept


def _edge_keys(page: list[str], end: int) -> dict[int, str]:
    """The two outermost lines of a page at its top (0) or bottom (-1), their numbers made equal."""
    full = [i for i, line in enumerate(page) if line.strip()]
    edge = full[:2] if end == 0 else full[-2:]
    return {i: re.sub(r"\d+|\b[ivxlc]+\b", "#", page[i].strip().lower()) for i in edge if len(page[i].strip()) < 100}


def joined_pages(pages: Iterable[list[str]]) -> list[str]:
    """The lines of all pages; a page's end within a sentence is no paragraph's end."""
    lines: list[str] = []
    for page in pages:
        first = next((i for i, line in enumerate(page) if line.strip()), None)
        if first is None:
            continue
        last = next((i for i in range(len(lines) - 1, -1, -1) if lines[i].strip()), None)
        if last is not None and _goes_on(lines[last], page[first]):
            lines = [*lines[: last + 1]] if last + 1 < len(lines) else lines
            page = page[first:]
        elif lines:
            lines.append("")
        lines += page
    return lines


def _goes_on(line: str, following: str) -> bool:
    return not _SENTENCE_END.search(line.rstrip()) and following.lstrip()[:1].islower()


def mended(lines: list[str], spaced: bool = True) -> str:
    """Lines as a printer broke them, made into paragraphs, each one line; verse and tables as they stand.

    `spaced`: blank lines stand between paragraphs, so that what stands between two of them is all prose or all not.
    Without them each line is judged by itself.
    """
    lines = [line.rstrip() for line in lines]
    width = _wrap_width(lines)
    words = _vocabulary(lines)
    out = []
    for block in _blocks(lines):
        if not block[0]:
            out += block
            continue
        for paragraph in _paragraphs(block, width, spaced):
            out.append(_joined(paragraph, words) if len(paragraph) > 1 else paragraph[0].replace("\xad", ""))
    return "\n".join(out).strip("\n") + "\n"


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines that are all blank or all not."""
    block: list[str] = []
    for line in lines:
        if block and bool(block[0]) != bool(line):
            yield block
            block = []
        block.append(line)
    if block:
        yield block


def _wrap_width(lines: list[str]) -> int:
    """The length at which most lines were broken: the 95th percentile of those that another follows."""
    lengths = sorted(len(line) for line, following in pairwise(lines) if line and following and line[0] != " ")
    return lengths[len(lengths) * 95 // 100] if lengths else 0


def _paragraphs(block: list[str], width: int, spaced: bool) -> Iterator[list[str]]:
    """The lines of a block, grouped into what is to be one line each."""
    if (spaced and not _is_prose(block, width)) or not 30 <= width <= 120:
        yield from ([line] for line in block)
        return
    indents = [len(line) - len(line.lstrip()) for line in block]
    paragraph = [block[0].lstrip()]
    for i in range(1, len(block)):
        opens = (indents[i] >= 2 and indents[i] > min(indents)) or _BULLET.match(block[i])
        ends = not spaced or _SENTENCE_END.search(block[i - 1])
        closes = not _is_full(block[i - 1], block[i], width) and ends and not block[i].lstrip()[:1].islower()
        if opens or closes:
            yield paragraph
            paragraph = []
        paragraph.append(block[i].strip())
    yield paragraph


def _is_prose(block: list[str], width: int) -> bool:
    """Whether the lines were broken for the page's width: all but the last leave no room for the next word."""
    if len(block) < 2:
        return False
    flush = sum(line[0] != " " for line in block)
    spaced = sum(bool(re.search(r"\S {3,}\S|\t", line)) for line in block)
    if flush < len(block) / 2 or spaced > len(block) / 3:
        return False
    full = sum(
        _is_full(line, following, width) or (following[:1].islower() and len(line) > 0.7 * width)
        for line, following in pairwise(block)
    )
    capitals = sum(line.lstrip(" \"'“‘(_")[:1].isupper() for line in block)
    verse = len(block) >= 4 and capitals >= 0.75 * len(block)
    return full >= 0.7 * (len(block) - 1) and not verse


def _is_full(line: str, following: str, width: int) -> bool:
    return len(line) + 1 + len(following.split(None, 1)[0]) > 0.88 * width


def _joined(lines: list[str], words: Counter) -> str:
    parts = [lines[0]]
    for line in lines[1:]:
        last = parts[-1]
        divided = _divided(last)
        if divided and line[:1].isalpha():
            parts[-1] = last[:-1] + ("-" if _keeps_hyphen(divided, line, last[-1], words) else "")
        elif not (last.endswith(("--", "—")) and last[-3:-2] != " "):
            parts[-1] += " "
        parts.append(line)
    return "".join(parts).replace("\xad", "")


def _divided(line: str) -> str:
    """The letters before a hyphen at the line's end, or nothing."""
    return _DIVIDED.search(line)[1] if line[-1:] in _HYPHENS and _DIVIDED.search(line) else ""


def _keeps_hyphen(left: str, line: str, mark: str, words: Counter) -> bool:
    """Whether a word divided at a line's end has a hyphen of its own: as the rest of the book writes it.

    A word that occurs nowhere else keeps it where both halves are words by themselves.
    """
    if mark in "\xad¬":
        return False
    if line[:1].isupper():
        return True
    right = _WORD.match(line)[0]
    head, hyphen, _ = right.partition("-")
    whole, parted = f"{left}{right}".lower(), f"{left}-{right}".lower()
    if words[whole] or words[parted]:
        return words[parted] >= words[whole]
    return "-" in left or (words[left.lower()] > 0 and words[(head if hyphen else right).lower()] > 0)


def _vocabulary(lines: list[str]) -> Counter:
    """How often each word stands within a line, halves of divided words left out."""
    words: Counter = Counter()
    after_division = False
    for line in lines:
        found = _WORD.findall(line.lower())
        divided = bool(_divided(line))
        words.update(found[after_division : len(found) - divided])
        after_division = divided
    return words

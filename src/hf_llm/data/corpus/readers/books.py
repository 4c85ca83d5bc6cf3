"""Turn plain-text books into paragraphs: Project Gutenberg's, scanned books, and pages broken for print.

The header and licence of Project Gutenberg are removed (their marks since 1991), and so are page numbers and running
headers. Lines broken by hand are joined into paragraphs, and the halves of words divided at a line's end into words.
Verse, tables and indented blocks keep their lines.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm.data.corpus.readers.document import RawDocument
from hf_llm.data.files.compressed import count_damage, open_file
from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.files.text_encoding import decode_text, explain_undecodable
from hf_llm.data.files.text_files import split_text

if TYPE_CHECKING:
    from hf_llm.data.corpus.config import Source

BOOK_BYTES = 64 << 20  # a longer text is not a book: the longest at Project Gutenberg has about 6 MB

_FIELD = re.compile(r"(Title|Author|Language|Release Date|Character set encoding)\s*:\s*(.*)", re.IGNORECASE)
_OLD_TITLE = re.compile(r"Project Gutenberg(?:['’]s)?\s+(?:(?:Etext|EBook) of\s+)?(.+?),?\s+by\s+(.+)", re.IGNORECASE)
_EBOOK_NUMBER = re.compile(r"\[?(?:EBook|Etext)\s+#\s?(\d+)", re.IGNORECASE)
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
_SOFT_HYPHEN = "\xad"
_HYPHENS = ("-", _SOFT_HYPHEN, "¬", "\u2010")
_DIVIDED = re.compile(rf"([^\W\d_]+(?:-[^\W\d_]+)*)[{''.join(_HYPHENS)}]$")

# Lines are taken for broken at a page's width if that is between these numbers of characters.
MIN_WRAP_WIDTH = 30
MAX_WRAP_WIDTH = 120
# Shares of that width: of a line with its next word, from which it is full; of a line that breaks within a sentence.
FULL_LINE_SHARE = 0.88
LONG_LINE_SHARE = 0.7
# Shares of a block's lines: full ones, from which it is prose; those that begin with a capital, from which it is verse.
PROSE_SHARE = 0.7
VERSE_SHARE = 0.75
PAGE_BREAK_SHARE = 0.2  # of lines that look like page numbers: those that must stand within a sentence
RUNNING_LINE_CHARS = 100  # a longer line is not a header or footer


def read(path: Path, errors: ReadErrors, source: "Source", max_chars: int) -> Iterator[RawDocument]:
    """Yield the pieces of one book, each with what the header says: title, author, language, release."""
    errors.records += 1
    content = b""
    with count_damage(path, errors), open_file(path) as file:
        content = file.read(BOOK_BYTES + 1)
    if len(content) > BOOK_BYTES:
        errors.drop_record(f"larger than {BOOK_BYTES >> 20} MiB", str(path))
        return
    text = decode_text(content)
    if text is None:
        errors.drop_record(explain_undecodable(content), str(path))
        return

    header, body = split_gutenberg_header(text.splitlines())
    about = parse_header(header)
    first_language = about.get("language", "").split(",")[0].strip().lower()
    language = _LANGUAGES.get(first_language, "")
    number = _EBOOK_NUMBER.search("\n".join(header))
    url = f"https://www.gutenberg.org/ebooks/{number[1]}" if number else ""

    paragraphs = join_wrapped_lines(remove_page_lines(body))
    for piece in split_text(paragraphs, max_chars):
        yield RawDocument(piece, url=url, language=language, about=dict(about))


def split_gutenberg_header(lines: list[str]) -> tuple[list[str], list[str]]:
    """Split a text into Project Gutenberg's header and the book, without the licence after it.

    A book that is not theirs is all body.
    """
    first_half = lines[: len(lines) // 2 + 1]
    marks = [i for i, line in enumerate(first_half) if _START.match(line)]
    start = marks[-1] + 1 if marks else 0
    if marks and start < len(lines):
        mark_is_closed = "***" in lines[start - 1].rstrip()[3:]
        if not mark_is_closed and "***" in lines[start]:
            start += 1  # the title runs over into a second line of the mark

    end = _first_index(lines, _END.match, start)
    body = lines[start:end]
    if marks:
        body = _remove_credits(body)
    return lines[:start], body


def _remove_credits(lines: list[str]) -> list[str]:
    """Remove a first paragraph that only says who made the file."""
    first = _first_index(lines, str.strip)
    if first == len(lines) or not _CREDIT.match(lines[first].strip()):
        return lines
    end_of_paragraph = _first_index(lines, _is_blank, first)
    return lines[end_of_paragraph:]


def _first_index(lines: list[str], condition: Callable[[str], object], start: int = 0) -> int:
    """Find the first line from `start` on that meets a condition; the number of lines if there is none."""
    for i in range(start, len(lines)):
        if condition(lines[i]):
            return i
    return len(lines)


def _last_line(lines: list[str], end: int) -> int:
    """Find the last line before `end` that is not blank; -1 if there is none."""
    for i in range(end - 1, -1, -1):
        if lines[i].strip():
            return i
    return -1


def _is_blank(line: str) -> bool:
    return not line.strip()


def parse_header(header: list[str]) -> dict[str, str]:
    """Parse title, author, language and release of a header, as far as it states them."""
    about: dict[str, str] = {}
    key = ""
    for line in header:
        match = _FIELD.match(line.strip())
        if match:
            key = match[1].lower()
            if key == "release date":
                key = "release"
            about.setdefault(key, match[2].strip())
        elif key and line[:1].isspace() and line.strip():
            about[key] += " " + line.strip()  # the field runs over into this line
        else:
            key = ""

    about.pop("character set encoding", None)
    if "release" in about:
        about["release"] = about["release"].split("[")[0].strip()
    if "title" not in about and header:
        about |= _parse_old_title(header)
    return {key: value for key, value in about.items() if value}


def _parse_old_title(header: list[str]) -> dict[str, str]:
    """Parse the first lines of a header as it was before there were fields: `The Project Gutenberg Etext of ... by`."""
    first_lines = " ".join(header[:3])
    match = _OLD_TITLE.search(first_lines.split("***")[0])
    if not match:
        return {}
    author = re.split(r"\s{2,}|\*", match[2])[0]
    return {"title": match[1].strip(), "author": author.strip()}


def remove_page_lines(lines: list[str]) -> list[str]:
    """Remove page numbers and running headers, and join paragraphs that continue on the next page."""
    lines = [_INLINE_PAGE.sub("", line) for line in lines]
    pages: list[list[str]] = []
    page: list[str] = []
    page_breaks = _find_page_breaks(lines)
    for i, line in enumerate(lines):
        if i in page_breaks:
            pages.append(page)
            page = []
            continue
        before, *after_form_feeds = line.split("\f")
        page.append(before)
        for part in after_form_feeds:
            pages.append(page)
            page = [part] if part else []
    return join_pages(remove_running_lines([*pages, page]))


def _find_page_breaks(lines: list[str]) -> set[int]:
    """Find the lines that hold only a page number, or a header with it: those whose numbers rise by 1 or 2.

    Numbers of chapters and poems rise too, but always after the end of a sentence; a page ends anywhere.
    """
    candidates = []
    for i, line in enumerate(lines):
        number = _parse_page_number(line.strip())
        if number is not None:
            candidates.append((i, number))

    rising = set()
    for (i, number), (next_i, next_number) in pairwise(candidates):
        if 0 < next_number - number <= 2:
            rising |= {i, next_i}
    if len(rising) < 3:
        return set()

    within_sentence = 0
    for i in sorted(rising)[1:]:
        last = _last_line(lines, i)
        line_before = lines[last] if last >= 0 else ""
        within_sentence += not _ends_sentence(line_before)
    return rising if within_sentence >= PAGE_BREAK_SHARE * len(rising) else set()


def _parse_page_number(line: str) -> int | None:
    """Return the number of a line that may be a page's number, or a running header with it; else None."""
    number = _PAGE_NUMBER.fullmatch(line)
    if number:
        return int(number[1])
    header = _NUMBERED_HEADER.fullmatch(line)
    if header and (header[1] or header[3]) and len(line) > 4:
        return int(header[1] or header[3])
    return None


def _ends_sentence(line: str) -> bool:
    return bool(_SENTENCE_END.search(line.rstrip()))


def remove_running_lines(pages: list[list[str]]) -> list[list[str]]:
    """Remove headers, footers and numbers: what stands at the same end of three pages and of a fifth of all."""
    needed = max(3, len(pages) // 5)
    running_at_top = _find_running_lines(pages, needed, at_top=True)
    running_at_bottom = _find_running_lines(pages, needed, at_top=False)

    kept = []
    for page, at_top, at_bottom in zip(pages, running_at_top, running_at_bottom, strict=True):
        running = at_top | at_bottom
        kept.append([line for i, line in enumerate(page) if i not in running])
    return kept


def _find_running_lines(pages: list[list[str]], needed: int, at_top: bool) -> list[set[int]]:
    """Find, on each page, the lines at one end of it that stand there on at least `needed` pages."""
    keys_of_pages = [_edge_keys(page, at_top) for page in pages]
    counts: Counter = Counter()
    for keys in keys_of_pages:
        counts.update(keys.values())
    return [{i for i, key in keys.items() if counts[key] >= needed} for keys in keys_of_pages]


def _edge_keys(page: list[str], at_top: bool) -> dict[int, str]:
    """Return the two outermost lines at the top or bottom of a page by their index, with all numbers made equal."""
    not_blank = [i for i, line in enumerate(page) if line.strip()]
    edge = not_blank[:2] if at_top else not_blank[-2:]
    keys = {}
    for i in edge:
        line = page[i].strip()
        if len(line) < RUNNING_LINE_CHARS:
            keys[i] = re.sub(r"\d+|\b[ivxlc]+\b", "#", line.lower())
    return keys


def join_pages(pages: Iterable[list[str]]) -> list[str]:
    """Join the lines of all pages, with a blank line between two unless the first ends within a sentence."""
    lines: list[str] = []
    for page in pages:
        first = _first_index(page, str.strip)
        if first == len(page):
            continue
        last = _last_line(lines, len(lines))
        if last >= 0 and _continues(lines[last], page[first]):
            del lines[last + 1 :]
            lines += page[first:]
        else:
            if lines:
                lines.append("")
            lines += page
    return lines


def _continues(line: str, following: str) -> bool:
    """Whether a sentence continues from one line to the other."""
    return not _ends_sentence(line) and _starts_lower(following)


def _starts_lower(line: str) -> bool:
    return line.lstrip()[:1].islower()


def join_wrapped_lines(lines: list[str], spaced: bool = True) -> str:
    """Join lines that were broken for a page's width into paragraphs, one line each; verse and tables stay as they are.

    `spaced`: blank lines stand between paragraphs, so that a block between two of them is either all prose or not at
    all. Without them each line is judged by itself.
    """
    lines = [line.rstrip() for line in lines]
    width = _estimate_wrap_width(lines)
    words = _count_words(lines)
    joined = []
    for block in _split_blocks(lines):
        if not block[0]:
            joined += block
            continue
        for paragraph in _split_paragraphs(block, width, spaced):
            if len(paragraph) > 1:
                joined.append(_join_paragraph(paragraph, words))
            else:
                joined.append(paragraph[0].replace(_SOFT_HYPHEN, ""))
    return "\n".join(joined).strip("\n") + "\n"


def _split_blocks(lines: list[str]) -> Iterator[list[str]]:
    """Split lines into runs that are all blank or all not."""
    block: list[str] = []
    for line in lines:
        if block and bool(block[0]) != bool(line):
            yield block
            block = []
        block.append(line)
    if block:
        yield block


def _estimate_wrap_width(lines: list[str]) -> int:
    """Estimate the length at which lines were broken: the 95th percentile of those that another follows."""
    lengths = []
    for line, following in pairwise(lines):
        if line and following and line[0] != " ":
            lengths.append(len(line))
    lengths.sort()
    return lengths[len(lengths) * 95 // 100] if lengths else 0


def _split_paragraphs(block: list[str], width: int, spaced: bool) -> Iterator[list[str]]:
    """Group the lines of a block into those that are to become one line each."""
    keeps_lines = spaced and not _is_prose(block, width)
    if keeps_lines or not MIN_WRAP_WIDTH <= width <= MAX_WRAP_WIDTH:
        for line in block:
            yield [line]
        return

    indents = [len(line) - len(line.lstrip()) for line in block]
    least_indent = min(indents)
    paragraph = [block[0].lstrip()]
    for i in range(1, len(block)):
        previous = block[i - 1]
        line = block[i]
        is_indented = indents[i] >= 2 and indents[i] > least_indent
        opens = is_indented or _BULLET.match(line)
        may_end = not spaced or _SENTENCE_END.search(previous)
        closes = may_end and not _is_full(previous, line, width) and not _starts_lower(line)
        if opens or closes:
            yield paragraph
            paragraph = []
        paragraph.append(line.strip())
    yield paragraph


def _is_prose(block: list[str], width: int) -> bool:
    """Whether the lines were broken for the page's width: all but the last have no room for the next word."""
    if len(block) < 2:
        return False
    flush_count = sum(line[0] != " " for line in block)
    gap_count = sum(bool(re.search(r"\S {3,}\S|\t", line)) for line in block)
    is_indented = flush_count < len(block) / 2
    is_table = gap_count > len(block) / 3
    if is_indented or is_table:
        return False

    full_count = 0
    for line, following in pairwise(block):
        breaks_sentence = following[:1].islower() and len(line) > LONG_LINE_SHARE * width
        if breaks_sentence or _is_full(line, following, width):
            full_count += 1

    capital_count = sum(line.lstrip(" \"'“‘(_")[:1].isupper() for line in block)
    is_verse = len(block) >= 4 and capital_count >= VERSE_SHARE * len(block)
    return full_count >= PROSE_SHARE * (len(block) - 1) and not is_verse


def _is_full(line: str, following: str, width: int) -> bool:
    """Whether a line has no room for the first word of the following one."""
    next_word = following.split(None, 1)[0]
    return len(line) + 1 + len(next_word) > FULL_LINE_SHARE * width


def _join_paragraph(lines: list[str], words: Counter) -> str:
    parts = [lines[0]]
    for line in lines[1:]:
        previous = parts[-1]
        first_half = _divided_word(previous)
        if first_half and line[:1].isalpha():
            keeps_hyphen = _keeps_hyphen(first_half, line, previous[-1], words)
            parts[-1] = previous[:-1] + ("-" if keeps_hyphen else "")
        else:
            ends_in_dash = previous.endswith(("--", "—")) and previous[-3:-2] != " "
            if not ends_in_dash:
                parts[-1] += " "
        parts.append(line)
    return "".join(parts).replace(_SOFT_HYPHEN, "")


def _divided_word(line: str) -> str:
    """Return the letters before a hyphen at the line's end, or nothing."""
    if line[-1:] not in _HYPHENS:
        return ""
    match = _DIVIDED.search(line)
    return match[1] if match else ""


def _keeps_hyphen(first_half: str, line: str, hyphen: str, words: Counter) -> bool:
    """Whether a word divided at a line's end has a hyphen of its own: as the rest of the book writes it.

    A word that occurs nowhere else keeps it if both halves are words by themselves.
    """
    if hyphen in (_SOFT_HYPHEN, "¬"):
        return False
    if line[:1].isupper():
        return True

    match = _WORD.match(line)
    assert match is not None, "the line begins with a letter"
    second_half = match[0]
    whole_count = words[f"{first_half}{second_half}".lower()]
    hyphenated_count = words[f"{first_half}-{second_half}".lower()]
    if whole_count or hyphenated_count:
        return hyphenated_count >= whole_count

    head = second_half.partition("-")[0]
    both_are_words = words[first_half.lower()] > 0 and words[head.lower()] > 0
    return "-" in first_half or both_are_words


def _count_words(lines: list[str]) -> Counter:
    """Count how often each word stands within a line, without the halves of divided words."""
    counts: Counter = Counter()
    after_division = False
    for line in lines:
        words = _WORD.findall(line.lower())
        is_divided = bool(_divided_word(line))
        first = 1 if after_division else 0
        end = len(words) - 1 if is_divided else len(words)
        counts.update(words[first:end])
        after_division = is_divided
    return counts

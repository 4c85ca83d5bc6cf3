"""Extract the main text of HTML pages, without menus, adverts, comments and footers.

The text is trafilatura's, in its fast mode and in favour of precision. Where that is less than half of what resiliparse
takes for the main part, resiliparse's is used: trafilatura has then found one article of several, or nothing
(`python benchmarks/extraction.py` compares the two and others; docs/web.md has the table). Both take the menus of a
page that is laid out in tables for its text, so these are removed before.

Pages are read in a process of their own, which a page can crash, fill or keep busy: then only that page is lost.
"""

import atexit
import contextlib
import faulthandler
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from hf_llm.core.extras import require_extras
from hf_llm.data.corpus.readers.document import RawDocument
from hf_llm.data.files.compressed import count_damage, open_file
from hf_llm.data.files.read_errors import NO_TEXT, ReadErrors
from hf_llm.data.files.text_encoding import detect_wide_encoding

if TYPE_CHECKING:
    from lxml.html import HtmlElement
    from resiliparse.parse.html import DOMNode, HTMLTree

    from hf_llm.data.corpus.config import Source

PAGE_BYTES = 8 << 20  # Common Crawl cuts pages at 5 MiB
PAGE_SECONDS = 60  # a page takes about 10 milliseconds
PAGE_MEMORY_BYTES = 4 << 30  # address space of the process that reads pages, where the system can limit it
TITLE_CHARS = 300
DATE_CHARS = 40
WIDE_ENCODING_BYTES = 4096  # of a page's start, by which UTF-16 is told
# A page is laid out in tables if so much of its text stands in tables that are no tables of data. In these, a cell or a
# table of at least so many links is a menu if its text is mostly that of links, and short for each.
LAYOUT_TABLE_SHARE = 0.5
MIN_MENU_LINKS = 3
MENU_LINK_SHARE = 0.7
MAX_MENU_LABEL_LETTERS = 40
MAX_MENU_SHARE = 0.5  # of the page's text: more is a list of links that the page is about
MIN_REST_LETTERS = 200  # that have to be left of a page: else its menus are its text
EXIT_CODE_OF_TIMEOUT = 1  # of the process that reads pages

_CREATIVE_COMMONS = re.compile(
    r"//(?:www\.)?creativecommons\.org/(?:licenses/(?P<terms>by(?:-nc)?(?:-sa|-nd)?)|publicdomain/(?P<zero>zero))"
    r"/(?P<version>\d\.\d)(?:/(?P<country>[a-z]{2})\b)?"
)
_DATE_SELECTORS = (
    'meta[property="article:published_time"]',
    'meta[itemprop="datePublished"]',
    'meta[name="date"]',
    'meta[name="dc.date"]',
)
_TABLE = re.compile(r"<table\b", re.IGNORECASE)
_HIDDEN_TAGS = ("script", "style", "noscript", "template")
# The start of an escape sequence, by which encodings made of ASCII (ISO-2022) say which characters follow.
_ESCAPE_SEQUENCE = re.compile(rb"\x1b[$(]")


def read(path: Path, errors: ReadErrors, source: "Source", max_chars: int) -> Iterator[RawDocument]:
    """Yield the document of one HTML file, which may be compressed (`tabular.COMPRESSED_SUFFIXES`)."""
    require_extras("web")
    with count_damage(path, errors), open_file(path) as file:
        html = file.read(PAGE_BYTES + 1)
        errors.records += 1
        if len(html) > PAGE_BYTES:
            errors.drop_record(f"page longer than {PAGE_BYTES >> 20} MiB", str(path))
            return
        document = extract_in_subprocess(html, str(path), errors)
        if document:
            yield document


def extract_in_subprocess(
    html: bytes, where: str, errors: ReadErrors, url: str = "", charset: str | None = None
) -> RawDocument | None:
    """Extract the document of a page in the process for pages; None, counted in `errors`, if there is none."""
    try:
        document = _get_page_reader().extract_page(html, url, charset)
    except PageError as error:
        errors.drop_record(str(error), where)
        return None
    if document is None:
        errors.leave_out(NO_TEXT, where)
    return document


def extract_document(html: bytes, url: str = "", charset: str | None = None) -> RawDocument | None:
    """Extract the main text of a page and what the page says of itself; None if there is no text.

    `charset` is the one the server named. Runs in the calling process: only for pages that are trusted.
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree
    from trafilatura import extract

    page = decode_page(html, charset)
    if not page.strip():
        return None

    tree = HTMLTree.parse(page)
    facts = _find_license(tree), _find_language(tree), _find_metadata(tree)
    page_without_menus = remove_table_menus(page)
    if page_without_menus is not None:
        page = page_without_menus
        tree = HTMLTree.parse(page)
    main_part = extract_plain_text(
        tree,
        preserve_formatting=True,
        main_content=True,
        list_bullets=False,
        alt_texts=False,
        comments=False,
        post_meta=False,
    )
    text = extract(page, fast=True, favor_precision=True, include_comments=False) or ""
    if 2 * _count_letters(text) < _count_letters(main_part):
        text = "\n".join(line.strip() for line in main_part.splitlines())
    if not text.strip():
        return None
    return RawDocument(text, url, *facts)


@dataclass(eq=False)
class _Box:
    """A table or a cell of one, or the page's body, with what is in it and in the boxes within it."""

    element: "HtmlElement"
    outer: "_Box | None"
    letters: int = 0
    link_letters: int = 0
    links: int = 0
    """Links with text."""
    has_headers: bool = False
    """Whether it is a table with a caption or headers of its own: one of data."""
    is_skipped: bool = False
    """Whether no menu is looked for in it."""

    @property
    def is_menu(self) -> bool:
        """Whether it is a list of links: enough of them, with short labels and little text beside them."""
        is_mostly_links = self.link_letters >= MENU_LINK_SHARE * self.letters
        has_short_labels = self.link_letters <= MAX_MENU_LABEL_LETTERS * self.links
        return self.links >= MIN_MENU_LINKS and is_mostly_links and has_short_labels


def remove_table_menus(page: str) -> str | None:
    """Remove the menus of a page that is laid out in tables, as pages before about 2005 are; None if it has none.

    Neither trafilatura nor resiliparse distinguishes a column of links from a column of text. The page is parsed by
    lxml, as in trafilatura: resiliparse's nodes take seconds for pages with long lists.
    """
    from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] - compiled, without stubs
    from lxml.html import HTMLParser, document_fromstring, tostring

    if not _TABLE.search(page):
        return None
    parser = HTMLParser(encoding="utf-8", huge_tree=True)
    content = page.replace("\0", "").encode("utf-8", "replace")
    try:
        root = document_fromstring(content, parser)
    except etree.LxmlError:  # there is no element in it
        return None
    if root.find("body") is None:
        return None

    body, *boxes = _measure_boxes(root.find("body"))
    layout_letters = sum(box.letters for box in boxes if box.outer is body and not box.has_headers)
    if layout_letters < LAYOUT_TABLE_SHARE * body.letters:
        return None

    menus = []
    for box in boxes:  # each after the one around it
        assert box.outer is not None, "only the body has none"
        box.is_skipped = box.outer.is_skipped or box.has_headers
        is_most_of_page = box.letters > MAX_MENU_SHARE * body.letters
        if box.is_menu and not box.is_skipped and not is_most_of_page:
            menus.append(box)
            box.is_skipped = True

    rest_letters = body.letters - sum(menu.letters for menu in menus)
    if not menus or rest_letters < MIN_REST_LETTERS:
        return None
    for menu in menus:
        menu.element.drop_tree()
    return str(tostring(root, encoding="unicode"))


def _measure_boxes(body: "HtmlElement") -> list[_Box]:
    """Measure the body and every table and cell in it; each box comes after the one around it."""
    from lxml import etree  # pyright: ignore[reportAttributeAccessIssue] - compiled, without stubs

    box = _Box(body, None)
    boxes = [box]
    hidden_depth = 0
    link_starts: list[int] = []  # of each open link: the letters of links before it, in its box

    def count_text(text: str | None) -> None:
        if text and not hidden_depth:
            letters = _count_letters(text)
            box.letters += letters
            box.link_letters += letters * bool(link_starts)

    for event, element in etree.iterwalk(body, events=("start", "end", "comment", "pi")):
        tag = element.tag
        is_link = tag == "a" and "href" in element.attrib
        if event == "start":
            if tag in ("table", "td"):
                box = _Box(element, box)
                boxes.append(box)
            box.has_headers = box.has_headers or tag in ("th", "thead", "caption")
            hidden_depth += tag in _HIDDEN_TAGS
            if is_link:
                link_starts.append(box.link_letters)
            count_text(element.text)
            continue

        if event == "end":
            hidden_depth -= tag in _HIDDEN_TAGS
            if is_link:
                box.links += box.link_letters > link_starts.pop()
            if element is box.element and box.outer is not None:
                box.outer.letters += box.letters
                box.outer.link_letters += box.link_letters
                box.outer.links += box.links
                box = box.outer
        count_text(element.tail)
    return boxes


def decode_page(data: bytes, charset: str | None = None) -> str:
    """Decode bytes from the web: as UTF-8 or UTF-16 if they are that, else as the server, the page or the bytes tell.

    Single wrong bytes become U+FFFD: a page cut within a character is not one in another encoding.
    """
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    wide = detect_wide_encoding(data[:WIDE_ENCODING_BYTES])
    if wide:
        return data.decode(wide.codec, "replace").removeprefix("\ufeff")
    try:
        if not _ESCAPE_SEQUENCE.search(data):
            return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass

    encoding = map_encoding_to_html5(charset, fallback_utf8=False) if charset else None
    encoding = encoding or detect_encoding(data, from_html_meta=True) or "utf-8"
    try:
        return data.decode(encoding, "replace").removeprefix("\ufeff")
    except LookupError:
        return data.decode("windows-1252", "replace")


def _count_letters(text: str) -> int:
    """Count the characters that are not white space."""
    return sum(map(len, text.split()))


def _find_language(tree: "HTMLTree") -> str:
    """Return the language the page claims: `en` of `<html lang="en-US">`."""
    html = tree.document.query_selector("html") if tree.document else None
    stated = (html.getattr("lang") if html else None) or ""
    code = stated.strip().lower().replace("_", "-").split("-")[0]
    is_language_code = code.isalpha() and 2 <= len(code) <= 3
    return code if is_language_code else ""


def _find_metadata(tree: "HTMLTree") -> dict:
    """Return the page's title and its date of publication, if it states them."""
    about = {}
    title = " ".join((tree.title or "").split())
    if title:
        about["title"] = title[:TITLE_CHARS]
    for selector in _DATE_SELECTORS:
        meta = tree.head and tree.head.query_selector(selector)
        date = meta and meta.getattr("content")
        if date:
            about["published"] = date.strip()[:DATE_CHARS]
            break
    return about


def _find_license(tree: "HTMLTree") -> str | None:
    """Return the Creative Commons licence that the page states by `rel="license"`; None if it states several or none.

    A licence inside a figure is that of the picture.
    """
    if not tree.document:
        return None
    links = tree.document.query_selector_all('a[rel~="license"], link[rel~="license"]')
    licenses = {
        _spdx_identifier(link.getattr("href") or "") for link in links if not _is_within(link, "figure", "figcaption")
    }
    return licenses.pop() if len(licenses) == 1 else None


def _is_within(node: "DOMNode", *tags: str) -> bool:
    """Whether an element lies within another one with one of these tags."""
    parent = node.parent
    while parent is not None:
        if parent.tag in tags:
            return True
        parent = parent.parent
    return False


def _spdx_identifier(address: str) -> str | None:
    """Return the identifier of the Creative Commons licence at an address, None if it is not one."""
    match = _CREATIVE_COMMONS.search(address.lower())
    if not match:
        return None
    name = "cc0" if match["zero"] else f"cc-{match['terms']}"
    return "-".join(filter(None, [name, match["version"], match["country"]]))


class PageError(Exception):
    """A page that could not be read, and why."""


class PageReader:
    """A process that reads pages for this one, each in at most so many seconds and bytes of memory."""

    def __init__(self, seconds: float = PAGE_SECONDS, memory: int = PAGE_MEMORY_BYTES) -> None:
        self.seconds = seconds
        self.memory = memory
        self.owner = os.getpid()
        self.process: subprocess.Popen | None = None

    def extract_page(self, html: bytes, url: str = "", charset: str | None = None) -> RawDocument | None:
        """Extract the main text of a page, as `extract_document` does, in the process.

        Raises PageError if the page ended the process or a library failed on it.
        """
        process = self.process
        if process is None:
            process = self._start()
        requests, answers = _pipes_of(process)
        try:
            _send(requests, (html, url, charset))
            answer = _receive(answers)
        except (EOFError, BrokenPipeError):
            code = process.wait()
            self.stop()
            if code == EXIT_CODE_OF_TIMEOUT:
                reason = f"page took longer than {self.seconds} s"
            else:
                reason = "page crashed the extractor"
            raise PageError(reason) from None
        if isinstance(answer, str):
            raise PageError(answer)
        return answer

    def _start(self) -> subprocess.Popen:
        call = f"from hf_llm.data.corpus.readers import html; html.serve_pages({self.seconds}, {self.memory})"
        command = [sys.executable, "-c", call]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.process = process
        _, answers = _pipes_of(process)
        try:
            _receive(answers)
        except EOFError:
            code = process.wait()
            self.stop()
            raise RuntimeError(f"the process that reads pages did not start (exit code {code})") from None
        return process

    def stop(self) -> None:
        """End the process; the next page starts another."""
        if self.process is not None and self.owner == os.getpid():
            requests, answers = _pipes_of(self.process)
            with contextlib.suppress(BrokenPipeError):  # what a dead process has not taken
                requests.close()
            answers.close()
            self.process.wait()
        self.process = None


def _pipes_of(process: subprocess.Popen) -> tuple[IO[bytes], IO[bytes]]:
    """Return the standard input and output of a process that was started with pipes for both."""
    assert process.stdin is not None and process.stdout is not None
    return process.stdin, process.stdout


_page_reader: PageReader | None = None


def _get_page_reader() -> PageReader:
    """Return this process's reader of pages; a forked process starts its own."""
    global _page_reader
    if _page_reader is None or _page_reader.owner != os.getpid():
        _page_reader = PageReader()
        atexit.register(_page_reader.stop)
    return _page_reader


def serve_pages(seconds: float, memory: int) -> None:
    """Answer pages from standard input on standard output until the input ends: the process behind PageReader.

    An answer is the document, None if the page has no text, or the reason why it could not be read.
    """
    import logging

    # What trafilatura gives up is counted by the caller, page by page.
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)

    # Standard output is for the answers alone: what a library prints goes to standard error.
    pages = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)

    extract_document(b"<html><body><p>ready</p></body></html>")  # loads the libraries before the memory is limited
    _limit_memory(memory)
    _send(answers, None)
    null_file = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    while page := _receive_page(pages):
        # Ends the process with code 1, even in the middle of C code.
        faulthandler.dump_traceback_later(seconds, exit=True, file=null_file)
        try:
            answer = extract_document(*page)
        except MemoryError:
            answer = "page needs too much memory"
        except Exception as error:  # whatever a library raises is an error of this page
            answer = f"{type(error).__name__} in the extractor"
        faulthandler.cancel_dump_traceback_later()
        _send(answers, answer)


def _limit_memory(memory: int) -> None:
    if sys.platform == "linux":
        import resource

        _, hard_limit = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (memory, hard_limit))


def _receive_page(pages: IO[bytes]) -> tuple | None:
    try:
        return _receive(pages)
    except EOFError:
        return None


def _send(pipe: IO[bytes], message: object) -> None:
    pickle.dump(message, pipe)
    pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    return pickle.load(pipe)

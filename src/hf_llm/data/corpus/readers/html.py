"""HTML pages: the text of the main part of each, without menus, adverts, comments and footers.

The text is trafilatura's, set to precision and to its fast way. Where that is less than half of what resiliparse holds
for the main part, resiliparse's is taken: trafilatura has then found one article of several, or nothing
(`python benchmarks/extraction.py` compares the two and others; docs/web.md has the table).

Pages are read in a process of their own, which a page can crash, fill or keep busy: only that page is lost then.
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
from pathlib import Path
from typing import IO, TYPE_CHECKING

from hf_llm.data.corpus.readers.document import Found
from hf_llm.data.files.read_errors import Faults
from hf_llm.data.files.tabular import count_damage, open_file

if TYPE_CHECKING:
    from resiliparse.parse.html import HTMLTree

    from hf_llm.data.corpus.sources import Source

PAGE_BYTES = 8 << 20  # Common Crawl cuts pages at 5 MiB
PAGE_SECONDS = 60  # a page takes about 10 milliseconds
PAGE_MEMORY = 4 << 30  # bytes of address space of the process that reads pages, where the system can limit it

_CREATIVE_COMMONS = re.compile(
    r"//(?:www\.)?creativecommons\.org/(?:licenses/(?P<terms>by(?:-nc)?(?:-sa|-nd)?)|publicdomain/(?P<zero>zero))"
    r"/(?P<version>\d\.\d)(?:/(?P<country>[a-z]{2})\b)?"
)
_DATES = (
    'meta[property="article:published_time"]',
    'meta[itemprop="datePublished"]',
    'meta[name="date"]',
    'meta[name="dc.date"]',
)
# Encodings that are ASCII to the eye: they say what they mean by escape sequences.
_ESCAPED = re.compile(rb"\x1b[$(]")


def read(path: Path, faults: Faults, source: "Source", max_chars: int) -> Iterator[Found]:
    """The document of one HTML file (packed, where its name ends in .gz or another suffix of `rows.COMPRESSED`)."""
    with count_damage(path, faults), open_file(path) as file:
        html = file.read(PAGE_BYTES + 1)
        faults.records += 1
        if len(html) > PAGE_BYTES:
            faults.drop(f"page longer than {PAGE_BYTES >> 20} MiB", str(path))
        elif found := page_document(html, str(path), faults):
            yield found


def page_document(html: bytes, where: str, faults: Faults, url: str = "", charset: str | None = None) -> Found | None:
    """The document of a page, read in the process for pages; None, counted in `faults`, where it has none."""
    try:
        found = _reader().text_of(html, url, charset)
    except PageLost as error:
        faults.drop(str(error), where)
        return None
    if found is None:
        faults.drop("no_text", where)
    return found


def text_of(html: bytes, url: str = "", charset: str | None = None) -> Found | None:
    """The main text of a page and what the page says of itself; None where there is no text.

    `charset` is what the server said. Runs in this process: for pages one trusts.
    """
    from resiliparse.extract.html2text import extract_plain_text
    from resiliparse.parse.html import HTMLTree
    from trafilatura import extract

    page = decoded(html, charset)
    if not page.strip():
        return None
    tree = HTMLTree.parse(page)
    whole = extract_plain_text(
        tree,
        preserve_formatting=True,
        main_content=True,
        list_bullets=False,
        alt_texts=False,
        comments=False,
        post_meta=False,
    )
    text = extract(page, fast=True, favor_precision=True, include_comments=False) or ""
    if 2 * _letters(text) < _letters(whole):
        text = "\n".join(line.strip() for line in whole.splitlines())
    return Found(text, url, _license(tree), _language(tree), _about(tree)) if text.strip() else None


def decoded(data: bytes, charset: str | None = None) -> str:
    """The text of bytes from the web: UTF-8 where they are that, else as the server, the page or the bytes tell.

    Single wrong bytes become U+FFFD: a page cut within a character is not one in another encoding.
    """
    from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

    try:
        if not _ESCAPED.search(data):
            return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        pass
    encoding = map_encoding_to_html5(charset, fallback_utf8=False) if charset else None
    encoding = encoding or detect_encoding(data, from_html_meta=True) or "utf-8"
    try:
        return data.decode(encoding, "replace").removeprefix("\ufeff")
    except LookupError:
        return data.decode("windows-1252", "replace")


def _letters(text: str) -> int:
    return sum(map(len, text.split()))


def _language(tree: "HTMLTree") -> str:
    """The language the page claims: `en` of `<html lang="en-US">`."""
    page = tree.document and tree.document.query_selector("html")
    stated = (page and page.getattr("lang")) or ""
    code = stated.strip().lower().replace("_", "-").split("-")[0]
    return code if code.isalpha() and 2 <= len(code) <= 3 else ""


def _about(tree: "HTMLTree") -> dict:
    about = {}
    if title := " ".join((tree.title or "").split()):
        about["title"] = title[:300]
    for selector in _DATES:
        if (meta := tree.head and tree.head.query_selector(selector)) and meta.getattr("content"):
            about["published"] = meta.getattr("content").strip()[:40]
            break
    return about


def _license(tree: "HTMLTree") -> str | None:
    """The Creative Commons licence that the page states by `rel="license"`; None where it states several or none.

    A licence inside a figure is the picture's.
    """
    links = tree.document.query_selector_all('a[rel~="license"], link[rel~="license"]') if tree.document else []
    stated = {_spdx(link.getattr("href") or "") for link in links if not _in_figure(link)}
    return stated.pop() if len(stated) == 1 else None


def _in_figure(node: object) -> bool:
    while node is not None:
        if node.tag in ("figure", "figcaption"):
            return True
        node = node.parent
    return False


def _spdx(address: str) -> str | None:
    match = _CREATIVE_COMMONS.search(address.lower())
    if not match:
        return None
    name = "cc0" if match["zero"] else f"cc-{match['terms']}"
    return "-".join(filter(None, [name, match["version"], match["country"]]))


class PageLost(Exception):
    """A page that could not be read, and why."""


class PageReader:
    """A process that reads pages for this one, each in at most so many seconds and bytes of memory."""

    def __init__(self, seconds: float = PAGE_SECONDS, memory: int = PAGE_MEMORY) -> None:
        self.seconds = seconds
        self.memory = memory
        self.owner = os.getpid()
        self.process: subprocess.Popen | None = None

    def text_of(self, html: bytes, url: str = "", charset: str | None = None) -> Found | None:
        """As the function of that name. Raises PageLost where the page ended the process or a library failed on it."""
        if self.process is None:
            self._start()
        try:
            _send(self.process.stdin, (html, url, charset))
            answer = _received(self.process.stdout)
        except (EOFError, BrokenPipeError):
            code = self.process.wait()
            self.stop()
            slow = f"page took longer than {self.seconds} s"
            raise PageLost(slow if code == 1 else "page crashed the extractor") from None
        if isinstance(answer, str):
            raise PageLost(answer)
        return answer

    def _start(self) -> None:
        call = f"from hf_llm.data.corpus.readers import html; html.serve({self.seconds}, {self.memory})"
        command = [sys.executable, "-c", call]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            _received(self.process.stdout)
        except EOFError:
            code = self.process.wait()
            self.stop()
            raise RuntimeError(f"the process that reads pages did not start (exit code {code})") from None

    def stop(self) -> None:
        """End the process; the next page starts another."""
        if self.process is not None and self.owner == os.getpid():
            with contextlib.suppress(BrokenPipeError):  # what a dead process has not taken
                self.process.stdin.close()
            self.process.stdout.close()
            self.process.wait()
        self.process = None


_page_reader: PageReader | None = None


def _reader() -> PageReader:
    """This process's reader of pages; a process made by fork starts its own."""
    global _page_reader
    if _page_reader is None or _page_reader.owner != os.getpid():
        _page_reader = PageReader()
        atexit.register(_page_reader.stop)
    return _page_reader


def serve(seconds: float, memory: int) -> None:
    """Answer pages from standard input on standard output until the input ends: the process behind PageReader."""
    import logging

    # What trafilatura gives up is counted by the caller, page by page.
    logging.getLogger("trafilatura").setLevel(logging.CRITICAL)
    pages, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # a library that prints must not get between the answers
    text_of(b"<html><body><p>ready</p></body></html>")
    _limit_memory(memory)
    _send(answers, None)
    nowhere = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
    while page := _next_page(pages):
        # Ends the process with code 1, even in the middle of C code.
        faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
        try:
            answer = text_of(*page)
        except MemoryError:
            answer = "page needs too much memory"
        except Exception as error:  # any fault of a library is a fault of this page
            answer = f"{type(error).__name__} in the extractor"
        faulthandler.cancel_dump_traceback_later()
        _send(answers, answer)


def _limit_memory(memory: int) -> None:
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory, resource.getrlimit(resource.RLIMIT_AS)[1]))


def _next_page(pages: IO[bytes]) -> tuple | None:
    try:
        return _received(pages)
    except EOFError:
        return None


def _send(pipe: IO[bytes], message: object) -> None:
    pickle.dump(message, pipe)
    pipe.flush()


def _received(pipe: IO[bytes]) -> object:
    return pickle.load(pipe)

"""MediaWiki XML dumps (plain, gzip or bzip2; UTF-8 or UTF-16) to one document for each article.

The dump is cut into pages as it streams by, and each page is parsed by itself: a broken page is lost alone. A document
type is never read, so the entities it may define are undefined: nothing expands.
Format: https://www.mediawiki.org/xml/export-0.11.xsd
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING
from urllib.parse import quote
from xml.etree import ElementTree

from hf_llm.data.corpus.readers.document import Found
from hf_llm.data.corpus.readers.wiki_markup import FILES_AND_CATEGORIES, prose
from hf_llm.data.files.read_errors import Faults
from hf_llm.data.files.tabular import count_damage, open_file

if TYPE_CHECKING:
    from hf_llm.data.corpus.sources import Source

PAGE_BYTES = 32 << 20  # of XML; a longer page is passed over, not held in memory
CHUNK_BYTES = 1 << 20

_OPEN, _CLOSE = b"<page>", b"</page>"
_LANGUAGE = re.compile(r'<mediawiki\b[^>]*\bxml:lang="([A-Za-z-]+)"')
_BASE = re.compile(r"<base>\s*([^<\s]+)\s*</base>")
_NAMESPACE = re.compile(r'<namespace key="(-2|6|14)"[^>]*>([^<]+)</namespace>')
_ANY_NAMESPACE = re.compile(r'<namespace key="-?[1-9]\d*"[^>]*>([^<]+)</namespace>')
_REDIRECT = re.compile(r"\s*#\s*\w+\s*:?\s*\[\[")
_DISAMBIGUATION = re.compile(
    r"\{\{\s*(?:disambig(?:uation)?|dab|disamb|hndis|geodis|numberdis|schooldis|roaddis|letter disambiguation|"
    r"human name disambiguation|place name disambiguation|begriffsklärung|homonymie|desambiguación|desambiguação|"
    r"disambigua|неоднозначность|doorverwijspagina|ujednoznacznienie|förgrening|aimai|曖昧さ回避|消歧义|消歧義)\s*"
    r"(?:\|[^{}]*)?\}\}|__DISAMBIG__",
    re.IGNORECASE,
)


def read(path: Path, faults: Faults, source: "Source", max_chars: int) -> Iterator[Found]:
    """The articles of a dump, in its order: namespace 0, neither redirects nor disambiguation pages."""
    header: Header | None = None
    for number, (before, page) in enumerate(_pages(path, faults), 1):
        header = header or Header(before)
        faults.records += 1
        where = f"{path}, page {number}"
        try:
            element = ElementTree.fromstring(page)
        except ElementTree.ParseError as error:
            faults.drop("malformed XML", where, str(error))
            continue
        found = _article(element, header)
        if found and found.text:
            yield found
        elif found:
            faults.drop("no_text", where, found.about["title"])


class Header:
    """What the beginning of a dump says of the wiki."""

    def __init__(self, xml: str):
        language, base = _LANGUAGE.search(xml), _BASE.search(xml)
        self.language = language[1].lower() if language else ""
        self.base = base[1].rpartition("/")[0] + "/" if base else ""
        own = {name.strip().lower() for _, name in _NAMESPACE.findall(xml)}
        self.dropped_links = FILES_AND_CATEGORIES | own
        self.namespaces = {name.strip().lower() for name in _ANY_NAMESPACE.findall(xml)}

    def is_article(self, page: ElementTree.Element, title: str) -> bool:
        """Whether the page stands in the main namespace; dumps before 2012 tell it by the title alone."""
        number = page.findtext("ns")
        if number is None:
            prefix, colon, _ = title.partition(":")
            return not colon or prefix.strip().lower() not in self.namespaces
        return number.strip() == "0"

    def url(self, title: str) -> str:
        return self.base + quote(title.replace(" ", "_"), safe="/:(),!*'@;") if self.base else ""


def _article(page: ElementTree.Element, header: Header) -> Found | None:
    """The document of a page; None where it is no article."""
    title = page.findtext("title", "").strip()
    if not header.is_article(page, title) or page.find("redirect") is not None:
        return None
    revision = page.find("revision[last()]")
    markup = revision.findtext("text") if revision is not None else ""
    if not markup or _REDIRECT.match(markup) or _DISAMBIGUATION.search(markup):
        return None
    if revision.findtext("model", "wikitext") != "wikitext":
        return None
    about = {"title": title}
    for name, element, tag in (("page", page, "id"), ("revision", revision, "id"), ("date", revision, "timestamp")):
        if value := element.findtext(tag):
            about[name] = int(value) if tag == "id" else value
    return Found(prose(markup, header.dropped_links), header.url(title), language=header.language, about=about)


def _pages(path: Path, faults: Faults) -> Iterator[tuple[str, bytes]]:
    """Every page's XML in UTF-8, and the text before the first one."""
    window, before, seen = bytearray(), "", False
    with count_damage(path, faults), open_file(path) as file:
        for chunk in _utf8(file):
            window += chunk
            while True:
                start = window.find(_OPEN)
                end = window.find(_CLOSE, start) if start >= 0 else -1
                if not seen and start >= 0:
                    before, seen = window[max(0, start - (1 << 20)) : start].decode("utf-8", "replace"), True
                if end < 0:
                    break
                yield before, bytes(window[start : end + len(_CLOSE)])
                del window[: end + len(_CLOSE)]
            if start < 0:
                del window[: -(1 << 20)]  # a header is far shorter
            elif len(window) - start > PAGE_BYTES:
                faults.records += 1
                faults.drop(f"page longer than {PAGE_BYTES >> 20} MiB", str(path), bytes(window[start : start + 80]))
                del window[: -len(_OPEN)]
        if seen and (cut := window.find(_OPEN)) >= 0:
            faults.records += 1
            faults.drop("truncated page", str(path), bytes(window[cut : cut + 80]))


def _utf8(file: IO[bytes]) -> Iterator[bytes]:
    """The file's bytes as they come, in UTF-8. What can be read before damage is given before the error is raised."""
    chunk = file.read1(CHUNK_BYTES)
    if chunk[:2] not in (b"\xff\xfe", b"\xfe\xff") and chunk[:2] not in (b"<\0", b"\0<"):
        while chunk:
            yield chunk
            chunk = file.read1(CHUNK_BYTES)
        return
    name = "utf-16" if chunk[:1] in b"\xff\xfe" else "utf-16-le" if chunk[:1] == b"<" else "utf-16-be"
    decoder = codecs.getincrementaldecoder(name)("replace")
    while chunk:
        yield decoder.decode(chunk).encode("utf-8", "replace")
        chunk = file.read1(CHUNK_BYTES)

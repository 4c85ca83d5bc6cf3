"""Turn MediaWiki XML dumps (plain, gzip or bzip2; UTF-8 or UTF-16) into one document for each article.

The dump is cut into pages while it is read, and each page is parsed separately, so only broken pages are lost. A
document type declaration is never parsed, so a dump cannot define entities that expand to huge texts.
Format: https://www.mediawiki.org/xml/export-0.11.xsd
"""

import codecs
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote
from xml.etree import ElementTree

from hf_llm.data.corpus.readers.document import RawDocument
from hf_llm.data.corpus.readers.wiki_markup import FILES_AND_CATEGORIES, extract_prose
from hf_llm.data.files.compressed import InputFile, count_damage, open_file
from hf_llm.data.files.read_errors import NO_TEXT, ReadErrors

if TYPE_CHECKING:
    from hf_llm.data.corpus.config import Source

PAGE_BYTES = 32 << 20  # a page with more XML is dropped, not held in memory
HEADER_BYTES = 1 << 20  # how much is kept of what precedes the first page; a header is far shorter
CHUNK_BYTES = 1 << 20
EXCERPT_BYTES = 80
MAX_ID_DIGITS = 20  # what is longer is not a number of a page or revision

_OPEN = b"<page>"
_CLOSE = b"</page>"
_LANGUAGE = re.compile(r'<mediawiki\b[^>]*\bxml:lang="([A-Za-z-]+)"')
_BASE_URL = re.compile(r"<base>\s*([^<\s]+)\s*</base>")
_FILE_OR_CATEGORY_NAMESPACE = re.compile(r'<namespace key="(-2|6|14)"[^>]*>([^<]+)</namespace>')
_ANY_NAMESPACE = re.compile(r'<namespace key="-?[1-9]\d*"[^>]*>([^<]+)</namespace>')
_REDIRECT = re.compile(r"\s*#\s*\w+\s*:?\s*\[\[")
_DISAMBIGUATION = re.compile(
    r"\{\{\s*(?:disambig(?:uation)?|dab|disamb|hndis|geodis|numberdis|schooldis|roaddis|letter disambiguation|"
    r"human name disambiguation|place name disambiguation|begriffsklärung|homonymie|desambiguación|desambiguação|"
    r"disambigua|неоднозначность|doorverwijspagina|ujednoznacznienie|förgrening|aimai|曖昧さ回避|消歧义|消歧義)\s*"
    r"(?:\|[^{}]*)?\}\}|__DISAMBIG__",
    re.IGNORECASE,
)


def read(path: Path, errors: ReadErrors, source: "Source", max_chars: int) -> Iterator[RawDocument]:
    """Yield the articles of a dump, in its order: namespace 0, neither redirects nor disambiguation pages.

    The other pages are counted as left out.
    """
    header: DumpHeader | None = None
    for number, (xml_before, page) in enumerate(_split_pages(path, errors), 1):
        header = header or DumpHeader(xml_before)
        errors.records += 1
        where = f"{path}, page {number}"
        try:
            element = ElementTree.fromstring(page)
        except ElementTree.ParseError as error:
            errors.drop_record("malformed XML", where, str(error))
            continue

        reason = _explain_exclusion(element, header)
        if reason is not None:
            errors.leave_out(reason, where)
            continue
        document = _convert_page(element, header)
        if document.text:
            yield document
        else:
            errors.leave_out(NO_TEXT, f"{where}, {document.about['title']}")


class DumpHeader:
    """What the beginning of a dump says about the wiki."""

    def __init__(self, xml: str):
        language = _LANGUAGE.search(xml)
        self.language = language[1].lower() if language else ""

        main_page_url = _BASE_URL.search(xml)
        self.base_url = main_page_url[1].rpartition("/")[0] + "/" if main_page_url else ""

        own_names = {name.strip().lower() for _, name in _FILE_OR_CATEGORY_NAMESPACE.findall(xml)}
        self.dropped_links = FILES_AND_CATEGORIES | own_names
        self.namespaces = {name.strip().lower() for name in _ANY_NAMESPACE.findall(xml)}

    def is_article(self, page: ElementTree.Element, title: str) -> bool:
        """Whether the page is in the main namespace. In dumps from before 2012, only the prefix of the title tells."""
        number = page.findtext("ns")
        if number is not None:
            return number.strip() == "0"
        prefix, colon, _ = title.partition(":")
        return not colon or prefix.strip().lower() not in self.namespaces

    def page_url(self, title: str) -> str:
        """Return the address of a page, empty if the dump does not say where the wiki is."""
        if not self.base_url:
            return ""
        return self.base_url + quote(title.replace(" ", "_"), safe="/:(),!*'@;")


def _explain_exclusion(page: ElementTree.Element, header: DumpHeader) -> str | None:
    """Return why a page is not an article; None if it is one."""
    if not header.is_article(page, page.findtext("title", "").strip()):
        return "page of another namespace"
    if page.find("redirect") is not None:
        return "redirect"
    revision = page.find("revision[last()]")
    markup = revision.findtext("text") if revision is not None else None
    if revision is None or not markup or not markup.strip():
        return NO_TEXT
    if _REDIRECT.match(markup):
        return "redirect"
    if _DISAMBIGUATION.search(markup):
        return "disambiguation page"
    if revision.findtext("model", "wikitext") != "wikitext":
        return "page that is not wiki text"
    return None


def _convert_page(page: ElementTree.Element, header: DumpHeader) -> RawDocument:
    """Make the document of an article."""
    title = page.findtext("title", "").strip()
    revision = page.find("revision[last()]")
    assert revision is not None, "an article has one"
    markup = revision.findtext("text", "")

    about: dict[str, str | int] = {"title": title}
    for key, element in (("page", page), ("revision", revision)):
        number = element.findtext("id", "").strip()
        if number.isdecimal() and len(number) <= MAX_ID_DIGITS:
            about[key] = int(number)
    date = revision.findtext("timestamp")
    if date:
        about["date"] = date
    text = extract_prose(markup, header.dropped_links)
    return RawDocument(text, header.page_url(title), language=header.language, about=about)


def _split_pages(path: Path, errors: ReadErrors) -> Iterator[tuple[str, bytes]]:
    """Yield the text before the first page, and each page's XML in UTF-8."""
    window = bytearray()
    header = ""
    has_header = False
    with count_damage(path, errors), open_file(path) as file:
        for chunk in _read_utf8(file):
            window += chunk
            while True:
                start = window.find(_OPEN)
                end = window.find(_CLOSE, start) if start >= 0 else -1
                if not has_header and start >= 0:
                    header_start = max(0, start - HEADER_BYTES)
                    header = window[header_start:start].decode("utf-8", "replace")
                    has_header = True
                if end < 0:
                    break

                end += len(_CLOSE)
                yield header, bytes(window[start:end])
                del window[:end]

            # What remains in the window does not hold a whole page; bound its size.
            if start < 0:
                del window[:-HEADER_BYTES]
            elif len(window) - start > PAGE_BYTES:
                excerpt = bytes(window[start : start + EXCERPT_BYTES])
                errors.records += 1
                errors.drop_record(f"page longer than {PAGE_BYTES >> 20} MiB", str(path), excerpt)
                del window[: -len(_OPEN)]

        last_start = window.find(_OPEN) if has_header else -1
        if last_start >= 0:
            excerpt = bytes(window[last_start : last_start + EXCERPT_BYTES])
            errors.records += 1
            errors.drop_record("truncated page", str(path), excerpt)


def _read_utf8(file: InputFile) -> Iterator[bytes]:
    """Yield the file in chunks of UTF-8. Everything before damage is yielded, then the error is raised."""
    chunk = file.read1(CHUNK_BYTES)  # read1 returns what is before damage, which read would lose
    encoding = _detect_utf16(chunk)
    if encoding is None:
        while chunk:
            yield chunk
            chunk = file.read1(CHUNK_BYTES)
        return

    decoder = codecs.getincrementaldecoder(encoding)("replace")
    while chunk:
        yield decoder.decode(chunk).encode("utf-8", "replace")
        chunk = file.read1(CHUNK_BYTES)


def _detect_utf16(start: bytes) -> str | None:
    """Return the name of the UTF-16 encoding of a file that starts with these bytes; None if it is not in one."""
    if start[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        return "utf-16"
    if start[:2] == b"<\0":
        return "utf-16-le"
    if start[:2] == b"\0<":
        return "utf-16-be"
    return None

"""Files of the web brought onto this disk, resumed where they broke off: Common Crawl's segments above all.

Common Crawl lists the files of each crawl in `wet.paths.gz` (text) and `warc.paths.gz` (pages):
https://data.commoncrawl.org/crawl-data/CC-MAIN-2025-33/wet.paths.gz
"""

import gzip
import hashlib
import http.client
import json
import os
import re
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit

from hf_llm.core.errors import UserError

ATTEMPTS = 6  # that bring nothing, one after the other; one that brings bytes starts the count anew
FIRST_WAIT = 1.0  # seconds; doubled with each attempt
LONGEST_WAIT = 60.0
TIMEOUT = 60  # seconds without a byte
CHUNK_BYTES = 1 << 20

_IN_ADDRESSES = "%/:=&?~#+!$,;'@()*[]"  # what an address may hold as it is
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_REMEDIES = {
    401: "it wants a login, which is not supported; download it yourself and give its `path`",
    403: "the server refuses; you may have fetched too much, try again later",
    404: "it does not exist; correct the address, or `paths` and `base`",
    410: "it is gone for good; take another",
}


@dataclass
class Crawl:
    """`crawl:` of a source: files of a web crawl to download and read."""

    paths: str | list[str] = field(
        metadata={"help": "address or local file of a list such as wet.paths.gz, or the names of the files themselves"}
    )
    base: str = field(default="https://data.commoncrawl.org", metadata={"help": "what the names in the list follow"})
    take: int | None = field(default=None, metadata={"help": "the first so many files of the list; all if left out"})

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("paths is empty; give the address of a list such as wet.paths.gz, or names of files")
        if urlsplit(self.base).scheme not in ("http", "https"):
            raise ValueError(f"base is {self.base!r}; it starts with https:// or http://")
        if self.take is not None and self.take < 1:
            raise ValueError(f"take is {self.take}; leave it out for all files")


def segments(crawl: Crawl) -> list[str]:
    """The addresses of a crawl's files, in the order of its list. Raises UserError where there is none."""
    names = crawl.paths if isinstance(crawl.paths, list) else _listed(crawl.paths)
    names = list(dict.fromkeys(name.strip() for name in names if name.strip()))[: crawl.take]
    if not names:
        raise UserError(f"{crawl.paths} lists no files; a list has one name per line")
    return [urljoin(crawl.base.rstrip("/") + "/", name) for name in names]


def _listed(paths: str) -> list[str]:
    if urlsplit(paths).scheme in ("http", "https"):
        with tempfile.TemporaryDirectory() as folder:
            return _lines(fetch(paths, Path(folder)))
    path = Path(paths).expanduser()
    if not path.is_file():
        raise UserError(f"{paths} does not exist (seen from {Path.cwd()}); correct `crawl.paths`")
    return _lines(path)


def _lines(path: Path) -> list[str]:
    content = path.read_bytes()
    try:
        return (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content).decode("utf-8").splitlines()
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path.name} is no list of files, one name per line ({error}); correct `crawl.paths`"
        ) from None


def fetch(url: str, folder: Path) -> Path:
    """The file at `url`, whole, in `folder`; downloaded if it is not there.

    What came before an interruption stays in a `.part` file and is gone on with, if the server says that the file has
    not changed since. Raises UserError where the server refuses or cannot be reached.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url} is no address of the web; it starts with https:// or http://")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / file_name(url)
    part = target.with_name(target.name + ".part")
    failures = 0
    while not target.exists():
        before = _size(part)
        try:
            _download(url, part)
            os.replace(part, target)
            _notes(part).unlink(missing_ok=True)
        except (OSError, http.client.HTTPException) as error:
            _refuse_final(url, error)
            failures = 1 if _size(part) > before else failures + 1
            if failures == ATTEMPTS:
                raise UserError(
                    f"{url} could not be downloaded ({_reason(error)}, {ATTEMPTS} times); check the network and run "
                    "again: what has come is kept"
                ) from error
            time.sleep(_wait(error, failures))
    return target


def file_name(url: str) -> str:
    """The name of a downloaded file: that of the address, after a digest that tells equal names apart."""
    name = re.sub(r"[^\w.-]", "_", unquote(urlsplit(url).path).rpartition("/")[2])
    return f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name or 'index'}"


class Cut(OSError):
    """A body that ended before its length, or after it."""


def _download(url: str, part: Path) -> None:
    """Bring `part` to its full length, from what there is of it if the server still has the same file."""
    held, validator = _size(part), _validator(part)
    headers = {"User-Agent": "hf_llm"}
    if held and validator:
        headers |= {"Range": f"bytes={held}-", "If-Range": validator}
    try:
        request = urllib.request.Request(quote(url, safe=_IN_ADDRESSES), headers=headers)
        answer = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            if error.headers.get("Content-Range") == f"bytes */{held}":
                return  # it was whole already
            part.unlink()
            raise Cut("the part on the disk is longer than the file") from error
        raise
    with answer:
        start, total = _place(answer)
        if start not in (0, held):
            raise Cut(f"bytes from {start:,} came, not from {held:,}")
        if start == 0:
            held = 0
            _note(part, answer)
        with open(part, "ab" if start else "wb") as file:
            while chunk := answer.read(CHUNK_BYTES):
                file.write(chunk)
                held += len(chunk)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and held != total:
        raise Cut(f"{held:,} of {total:,} bytes came")


def _place(answer: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Where the body of an answer begins in the file, and how long the file is (None where the server does not say)."""
    if answer.status != http.client.PARTIAL_CONTENT:
        length = answer.headers.get("Content-Length")
        return 0, int(length) if length else None
    place = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
    if not place:
        raise Cut("a part of the file came, and the server does not say which")
    return int(place[1]), int(place[2]) if place[2] != "*" else None


def _note(part: Path, answer: http.client.HTTPResponse) -> None:
    """Keep beside the part what tells its version: a strong ETag, else when it last changed (RFC 9110, 13.1.5)."""
    tag = answer.headers.get("ETag", "")
    version = tag if tag.startswith('"') else answer.headers.get("Last-Modified")
    part.unlink(missing_ok=True)  # never a new note beside old bytes
    _notes(part).write_text(json.dumps({"version": version}), encoding="utf-8")


def _validator(part: Path) -> str | None:
    try:
        return json.loads(_notes(part).read_text(encoding="utf-8"))["version"]
    except (FileNotFoundError, ValueError):
        return None


def _notes(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _refuse_final(url: str, error: Exception) -> None:
    """Raise what another attempt would not mend: the server's refusal as UserError, a fault of this disk as it is."""
    if isinstance(error, urllib.error.HTTPError):
        if error.code not in _PASSING:
            remedy = _REMEDIES.get(error.code, "check the address in a browser")
            raise UserError(f"{url}: HTTP {error.code} {error.reason}: {remedy}") from error
    elif isinstance(error, OSError) and not isinstance(
        error, (urllib.error.URLError, ConnectionError, TimeoutError, Cut)
    ):
        raise error


def _wait(error: Exception, failures: int) -> float:
    """Seconds to wait: what the server asks for, else twice as long each time."""
    asked = error.headers.get("Retry-After", "") if isinstance(error, urllib.error.HTTPError) else ""
    return min(float(asked) if asked.isdigit() else FIRST_WAIT * 2 ** (failures - 1), LONGEST_WAIT)


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    return str(getattr(error, "reason", "") or error or type(error).__name__)

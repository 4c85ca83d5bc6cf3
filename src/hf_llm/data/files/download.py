"""Download files from the web, mainly Common Crawl's segments; an interrupted download is resumed.

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
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit

from hf_llm.core.errors import UserError

MAX_ATTEMPTS = 6  # consecutive failed attempts; one that has received some bytes starts the count again
FIRST_WAIT_SECONDS = 1.0  # doubled with each attempt
MAX_WAIT_SECONDS = 60.0
TIMEOUT_SECONDS = 60  # without a byte
CHUNK_BYTES = 1 << 20

_URL_CHARACTERS = "%/:=&?~#+!$,;'@()*[]"  # characters that are not escaped in a URL
_TEMPORARY_STATUS = {408, 425, 429, 500, 502, 503, 504}
_REMEDIES = {
    401: "it wants a login, which is not supported; download it yourself and give its `path`",
    403: "the server refuses; you may have fetched too much, try again later",
    404: "it does not exist; correct the address, or `paths` and `base`",
    410: "it is gone for good; take another",
}


@dataclass
class Crawl:
    """Files of a web crawl to download and read: the section `crawl` of a source."""

    paths: str | list[str]
    """Address or local file of a list such as wet.paths.gz, or the names of the files themselves."""
    base: str = "https://data.commoncrawl.org"
    """Address that the names in the list are appended to."""
    take: int | None = None
    """Only the first so many files of the list are read; all if left out."""

    def __post_init__(self) -> None:
        if not self.paths:
            raise ValueError("paths is empty; give the address of a list such as wet.paths.gz, or names of files")
        if urlsplit(self.base).scheme not in ("http", "https"):
            raise ValueError(f"base is {self.base!r}; it starts with https:// or http://")
        if self.take is not None and self.take < 1:
            raise ValueError(f"take is {self.take}; leave it out for all files")


def list_segments(crawl: Crawl) -> list[str]:
    """List the URLs of a crawl's files, in the order of its list. Raises UserError if there are none."""
    if isinstance(crawl.paths, list):
        lines = crawl.paths
    else:
        lines = _read_list(crawl.paths)
    stripped = [line.strip() for line in lines if line.strip()]
    names = list(dict.fromkeys(stripped))[: crawl.take]
    if not names:
        raise UserError(f"{crawl.paths} lists no files; a list has one name per line")

    base = crawl.base.rstrip("/") + "/"
    return [urljoin(base, name) for name in names]


def _read_list(paths: str) -> list[str]:
    if urlsplit(paths).scheme in ("http", "https"):
        with tempfile.TemporaryDirectory() as folder:
            return _read_lines(download_file(paths, Path(folder)))
    path = Path(paths).expanduser()
    if not path.is_file():
        raise UserError(f"{paths} does not exist (seen from {Path.cwd()}); correct `crawl.paths`")
    return _read_lines(path)


def _read_lines(path: Path) -> list[str]:
    content = path.read_bytes()
    try:
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        return content.decode("utf-8").splitlines()
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(
            f"{path.name} is not a list of files, one name per line ({error}); correct `crawl.paths`"
        ) from None


def download_file(url: str, folder: Path) -> Path:
    """Download the file at `url` completely to `folder`, unless it is already there. Returns its path.

    What was received before an interruption is in a `.part` file. The download is resumed from there if the server says
    that the file has not changed since. Raises UserError if the server refuses or cannot be reached.
    """
    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"{url} is not an address of the web; it starts with https:// or http://")
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / local_name(url)
    part = target.with_name(target.name + ".part")

    failures = 0
    while not target.exists():
        size_before = _file_size(part)
        try:
            _download_part(url, part)
            os.replace(part, target)
            _version_file(part).unlink(missing_ok=True)
        except (OSError, http.client.HTTPException) as error:
            _raise_permanent(url, error)
            failures = 1 if _file_size(part) > size_before else failures + 1
            if failures == MAX_ATTEMPTS:
                raise UserError(
                    f"{url} could not be downloaded ({_describe_error(error)}, {MAX_ATTEMPTS} times); check the "
                    "network and run again: what has come is kept"
                ) from error
            time.sleep(_wait_seconds(error, failures))
    return target


def local_name(url: str) -> str:
    """Name a downloaded file: as in its URL, after a digest that distinguishes equal names."""
    last_part = unquote(urlsplit(url).path).rpartition("/")[2]
    name = re.sub(r"[^\w.-]", "_", last_part) or "index"
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    return f"{digest}-{name}"


class IncompleteDownload(OSError):
    """A response whose body does not match its headers."""


def _download_part(url: str, part: Path) -> None:
    """Download the file to `part`, resuming from the bytes in it if the server still has the same version."""
    # The server sends the missing bytes if its file still has this version, else the whole file.
    held_bytes = _file_size(part)
    version = _read_version(part)
    headers = {"User-Agent": "hf_llm"}
    if held_bytes and version:
        headers |= {"Range": f"bytes={held_bytes}-", "If-Range": version}

    try:
        request = urllib.request.Request(quote(url, safe=_URL_CHARACTERS), headers=headers)
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        if error.headers.get("Content-Range") == f"bytes */{held_bytes}":
            return  # it was complete already
        part.unlink()
        raise IncompleteDownload("the part on the disk is longer than the file") from error

    with response:
        start, total_bytes = _parse_range(response)
        if start not in (0, held_bytes):
            raise IncompleteDownload(f"bytes from {start:,} came, not from {held_bytes:,}")
        if start == 0:
            held_bytes = 0
            _write_version(part, response)
        with open(part, "ab" if start else "wb") as file:
            while chunk := response.read(CHUNK_BYTES):
                file.write(chunk)
                held_bytes += len(chunk)
            file.flush()
            os.fsync(file.fileno())

    if total_bytes is not None and held_bytes != total_bytes:
        raise IncompleteDownload(f"{held_bytes:,} of {total_bytes:,} bytes came")


def _parse_range(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """Return the byte of the file at which the body begins, and the file's length (None if the server does not say)."""
    if response.status != http.client.PARTIAL_CONTENT:
        length = response.headers.get("Content-Length")
        return 0, int(length) if length else None

    content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    if not content_range:
        raise IncompleteDownload("a part of the file came, and the server does not say which")
    start, total = content_range.groups()
    return int(start), None if total == "*" else int(total)


def _write_version(part: Path, response: http.client.HTTPResponse) -> None:
    """Write the version of the file beside the part: a strong ETag, else its modification time (RFC 9110, 13.1.5)."""
    etag = response.headers.get("ETag", "")
    version = etag if etag.startswith('"') else response.headers.get("Last-Modified")
    part.unlink(missing_ok=True)  # never a new version beside old bytes
    _version_file(part).write_text(json.dumps({"version": version}), encoding="utf-8")


def _read_version(part: Path) -> str | None:
    try:
        return json.loads(_version_file(part).read_text(encoding="utf-8"))["version"]
    except (FileNotFoundError, ValueError):
        return None


def _version_file(part: Path) -> Path:
    return part.with_name(part.name + ".json")


def _file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _raise_permanent(url: str, error: Exception) -> None:
    """Raise the error if another attempt is useless: a server's refusal as UserError, an error of the disk as it is."""
    if isinstance(error, urllib.error.HTTPError):
        if error.code not in _TEMPORARY_STATUS:
            remedy = _REMEDIES.get(error.code, "check the address in a browser")
            raise UserError(f"{url}: HTTP {error.code} {error.reason}: {remedy}") from error
        return

    is_of_network = isinstance(error, urllib.error.URLError | ConnectionError | TimeoutError | IncompleteDownload)
    if isinstance(error, OSError) and not is_of_network:
        raise error


def _wait_seconds(error: Exception, failures: int) -> float:
    """Return the seconds to wait: what the server asks for, else twice as long with each failure."""
    retry_after = ""
    if isinstance(error, urllib.error.HTTPError):
        retry_after = error.headers.get("Retry-After", "")
    seconds = float(retry_after) if retry_after.isdigit() else FIRST_WAIT_SECONDS * 2 ** (failures - 1)
    return min(seconds, MAX_WAIT_SECONDS)


def _describe_error(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code} {error.reason}"
    return str(getattr(error, "reason", "") or error or type(error).__name__)

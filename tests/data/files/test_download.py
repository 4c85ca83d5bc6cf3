"""Downloads, against a real server on this machine that does what bad servers do."""

import gzip
import hashlib
import http.server

import pytest

from hf_llm.core.errors import UserError
from hf_llm.data.files import download
from hf_llm.data.files.download import Crawl, download_file, list_segments
from tests.served import in_thread

CONTENT = bytes(range(256)) * 4096 * 3  # 3 MiB


class Server(http.server.ThreadingHTTPServer):
    """Serves `content` under every path. `faults` holds what it does wrong to one request after the other."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.version, self.ranges = CONTENT, '"one"', True
        self.faults: list = []
        self.asked: list[str | None] = []  # the Range of every request
        self.url = f"http://127.0.0.1:{self.server_port}/crawl/a.warc.gz"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        server = self.server
        wanted = self.headers.get("Range")
        server.asked.append(wanted)
        fault = server.faults.pop(0) if server.faults else None
        if isinstance(fault, int):
            self.send_response(fault)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        same = self.headers.get("If-Range") == server.version and server.version
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and same and server.ranges else 0
        if start >= len(server.content) > 0:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(server.content)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_body(server.content[start:], start, fault)

    def send_body(self, body, start, fault):
        total = len(self.server.content)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if self.server.version:
            self.send_header("ETag", self.server.version)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "cut":
            body = body[: len(body) // 2]
        self.wfile.write(body)
        self.close_connection = True

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download, "FIRST_WAIT_SECONDS", 0.01)
    with in_thread(Server()) as running:
        yield running


def test_a_file_is_downloaded_once(server, tmp_path):
    path = download_file(server.url, tmp_path)
    assert path.read_bytes() == CONTENT
    assert path.name == hashlib.sha256(server.url.encode()).hexdigest()[:8] + "-a.warc.gz"
    assert download_file(server.url, tmp_path) == path
    assert server.asked == [None]
    assert list(tmp_path.iterdir()) == [path]


def test_equal_names_in_different_places_are_different_files(server, tmp_path):
    first = download_file(server.url, tmp_path)
    second = download_file(server.url.replace("/crawl/", "/other/"), tmp_path)
    assert first != second


def test_a_cut_connection_is_resumed_where_it_broke_off(server, tmp_path):
    server.faults = ["cut", "cut"]
    assert download_file(server.url, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={len(CONTENT) // 2}-", f"bytes={len(CONTENT) * 3 // 4}-"]


def test_a_download_that_was_killed_is_resumed_in_the_next_run(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_ATTEMPTS", 1)
    server.faults = ["cut"]
    with pytest.raises(UserError, match="what has come is kept"):
        download_file(server.url, tmp_path)
    assert download_file(server.url, tmp_path).read_bytes() == CONTENT
    assert server.asked[-1] == f"bytes={len(CONTENT) // 2}-"


def test_a_file_that_changed_meanwhile_is_downloaded_again(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "MAX_ATTEMPTS", 1)
    server.faults = ["cut"]
    with pytest.raises(UserError):
        download_file(server.url, tmp_path)
    server.content, server.version = CONTENT[::-1], '"two"'
    assert download_file(server.url, tmp_path).read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize(("ranges", "version"), [(False, '"one"'), (True, ""), (True, 'W/"weak"')])
def test_without_ranges_or_a_version_a_cut_download_starts_again(server, tmp_path, ranges, version):
    server.ranges, server.version = ranges, version
    server.faults = ["cut"]
    assert download_file(server.url, tmp_path).read_bytes() == CONTENT


def test_a_part_that_is_whole_already_is_not_downloaded_again(server, tmp_path):
    path = download_file(server.url, tmp_path)
    part = path.with_name(path.name + ".part")
    path.rename(part)
    part.with_name(part.name + ".json").write_text('{"version": "\\"one\\""}')
    assert download_file(server.url, tmp_path).read_bytes() == CONTENT
    assert server.asked == [None, f"bytes={len(CONTENT)}-"]


def test_a_part_that_is_longer_than_the_file_is_thrown_away(server, tmp_path):
    part = tmp_path / (download.local_name(server.url) + ".part")
    part.write_bytes(CONTENT + b"more")
    part.with_name(part.name + ".json").write_text('{"version": "\\"one\\""}')
    assert download_file(server.url, tmp_path).read_bytes() == CONTENT


def test_a_busy_server_is_asked_again(server, tmp_path):
    server.faults = [503, 429, 500]
    assert download_file(server.url, tmp_path).read_bytes() == CONTENT


def test_a_server_that_stays_busy_is_an_error_that_names_the_address(server, tmp_path):
    server.faults = [503] * 100
    with pytest.raises(
        UserError, match=r"a\.warc\.gz could not be downloaded \(HTTP 503 Service Unavailable, 6 times\)"
    ):
        download_file(server.url, tmp_path)
    assert len(server.asked) == 6


@pytest.mark.parametrize(("code", "remedy"), [(404, "does not exist"), (403, "refuses"), (418, "browser")])
def test_a_refusal_is_an_error_at_once_with_its_remedy(server, tmp_path, code, remedy):
    server.faults = [code]
    with pytest.raises(UserError, match=rf"a\.warc\.gz: HTTP {code} .*{remedy}"):
        download_file(server.url, tmp_path)
    assert len(server.asked) == 1
    assert list(tmp_path.iterdir()) == []


def test_nobody_at_the_address_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(download, "FIRST_WAIT_SECONDS", 0.01)
    with in_thread(Server()) as gone:
        address = gone.url
    with pytest.raises(UserError, match=r"could not be downloaded .*refused"):
        download_file(address, tmp_path)
    with pytest.raises(UserError, match="is not an address of the web"):
        download_file("file:///etc/hostname", tmp_path)


def test_a_full_disk_is_no_reason_to_try_again(server, tmp_path, monkeypatch):
    part = tmp_path / (download.local_name(server.url) + ".part")
    part.mkdir()  # what cannot be written fails as the disk's fault, not the network's
    (part / "file").touch()
    with pytest.raises(OSError) as caught:
        download_file(server.url, tmp_path)
    assert caught.value.errno
    assert len(server.asked) == 1


LIST = "crawl-data/CC/1.warc.wet.gz\ncrawl-data/CC/2.warc.wet.gz\n\ncrawl-data/CC/3.warc.wet.gz\n"


def test_a_crawl_lists_its_files(server, tmp_path):
    expected = [f"https://data.commoncrawl.org/crawl-data/CC/{n}.warc.wet.gz" for n in (1, 2, 3)]
    (tmp_path / "wet.paths.gz").write_bytes(gzip.compress(LIST.encode()))
    (tmp_path / "wet.paths").write_text(LIST)
    server.content = gzip.compress(LIST.encode())
    assert list_segments(Crawl(str(tmp_path / "wet.paths.gz"))) == expected
    assert list_segments(Crawl(str(tmp_path / "wet.paths"), take=2)) == expected[:2]
    assert list_segments(Crawl(server.url)) == expected
    assert list_segments(Crawl(["a/b.gz", "https://b.org/c.gz"], base="http://a.org/x")) == [
        "http://a.org/x/a/b.gz",
        "https://b.org/c.gz",
    ]


def test_a_list_that_is_none_is_an_error(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        list_segments(Crawl(str(tmp_path / "wet.paths.gz")))
    (tmp_path / "wet.paths.gz").write_bytes(gzip.compress(LIST.encode())[:-9])
    with pytest.raises(UserError, match="is not a list of files, one name per line"):
        list_segments(Crawl(str(tmp_path / "wet.paths.gz")))
    (tmp_path / "empty").touch()
    with pytest.raises(UserError, match="lists no files"):
        list_segments(Crawl(str(tmp_path / "empty")))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"paths": ""}, "paths is empty"),
        ({"paths": "a", "take": 0}, "take is 0"),
        ({"paths": "a", "base": "s3://a"}, "base"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Crawl(**settings)

"""A small Hub on loopback: the part of its HTTP API that creating, uploading to and loading from a repository uses.

Follows https://huggingface.co/docs/hub/api and the git-lfs batch API; files live in memory. `fail` makes it refuse
everything (403), `refuse_commits` only what would change a repository; `next_commits` are the statuses that the commits
to come are answered with, before they succeed, and while `silent` is set none of them is answered at all.
"""

import base64
import hashlib
import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Hub:
    """What the server holds: `repositories[name][path] = bytes`, and the requests it answered."""

    def __init__(self):
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.fail = False
        self.refuse_commits = False
        self.next_commits: list[int] = []
        self.silent = threading.Event()
        self.unanswered = 0  # commits that came while it was silent
        self.url = ""

    def commit(self, name: str) -> str:
        """The repository's commit id: a digest of what it holds."""
        files = self.repositories[name]
        return hashlib.sha1(b"".join(k.encode() + hashlib.sha1(files[k]).digest() for k in sorted(files))).hexdigest()

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, dict, bytes]:
        """Status, headers and body for one request."""
        if self.fail or (self.refuse_commits and "/commit/" in path):
            return 403, {}, b'{"error": "you may not write here"}'
        if "/commit/" in path:
            if self.silent.is_set():
                self.unanswered += 1
                while self.silent.is_set():
                    time.sleep(0.05)
            if self.next_commits:
                return self.next_commits.pop(0), {}, b'{"error": "out of order"}'
        for pattern, handler in (
            (r"/api/whoami-v2", self._whoami),
            (r"/api/validate-yaml", lambda body: {"warnings": [], "errors": []}),
            (r"/api/repos/create", self._create),
            (r"/api/models/([\w.-]+/[\w.-]+)/preupload/.*", self._preupload),
            (r"/api/models/([\w.-]+/[\w.-]+)/commit/.*", self._commit),
            (r"/api/models/([\w.-]+/[\w.-]+)/tree/[^/]+.*", self._tree),
            (r"/api/models/([\w.-]+/[\w.-]+?)(?:/revision/.*)?", self._info),
            (r"/([\w.-]+/[\w.-]+)\.git/info/lfs/objects/batch", self._batch),
        ):
            if match := re.fullmatch(pattern, path):
                value = handler(*match.groups(), body)
                return (404, {}, b"{}") if value is None else (200, {}, json.dumps(value).encode())
        if match := re.fullmatch(r"/lfs/(\w+)", path):
            self.blobs[match[1]] = body
            return 200, {}, b""
        if match := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/[^/]+/(.*)", path):
            return self._file(*match.groups())
        return 404, {}, b"{}"

    def _whoami(self, body):
        return {"type": "user", "name": "ada", "orgs": [], "auth": {"type": "access_token"}}

    def _create(self, body):
        wanted = json.loads(body)
        name = f"{wanted.get('organization') or 'ada'}/{wanted['name']}"
        self.repositories.setdefault(name, {})
        return {"url": f"{self.url}/{name}", "id": name, "name": name}

    def _preupload(self, name, body):
        return {
            "files": [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith((".safetensors", ".bin")) else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
        }

    def _batch(self, name, body):
        return {
            "transfer": "basic",
            "objects": [
                {**wanted, "actions": {"upload": {"href": f"{self.url}/lfs/{wanted['oid']}"}}}
                for wanted in json.loads(body)["objects"]
            ],
        }

    def _commit(self, name, body):
        files = self.repositories[name]
        for line in body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.blobs[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        oid = self.commit(name)
        return {"success": True, "commitUrl": f"{self.url}/{name}/commit/{oid}", "commitOid": oid}

    def _info(self, name, body):
        if name not in self.repositories:
            return None
        siblings = [{"rfilename": path} for path in sorted(self.repositories[name])]
        return {
            "id": name,
            "modelId": name,
            "sha": self.commit(name),
            "private": False,
            "siblings": siblings,
            "tags": [],
        }

    def _tree(self, name, body):
        if name not in self.repositories:
            return None
        files = self.repositories[name]
        return [
            {"type": "file", "path": path, "size": len(files[path]), "oid": hashlib.sha1(files[path]).hexdigest()}
            for path in sorted(files)
        ]

    def _file(self, name, path):
        files = self.repositories.get(name, {})
        if path not in files:
            code = "EntryNotFound" if name in self.repositories else "RepoNotFound"
            return 404, {"X-Error-Code": code}, b""
        etag = hashlib.sha256(files[path]).hexdigest()
        return 200, {"ETag": f'"{etag}"', "X-Repo-Commit": self.commit(name)}, files[path]


@contextmanager
def running_hub():
    """A Hub on a free loopback port, for the length of a `with` block."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def respond(self):
            body = self.read_body()
            path = self.path.partition("?")[0]
            hub.requests.append(f"{self.command} {path}")
            status, headers, content = hub.answer(self.command, path, body)
            self.send_response(status)
            for key, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def read_body(self):
            if self.headers.get("Transfer-Encoding", "") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        do_GET = do_HEAD = do_POST = do_PUT = respond

        def log_message(self, *args):
            """The test says what it needs to know."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()

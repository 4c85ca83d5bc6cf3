"""The judging page: a web server for one machine, or for the people one gives its address to.

Listens on this machine only unless told otherwise. A page of another site can neither vote nor read: requests need the
comparison's token in a header of their own, votes a JSON body, and the Host header must name this server (against DNS
rebinding). Elsewhere than on this machine the token is in the address, and nothing is shown without it. Plain HTTP:
over an untrusted network put it behind a tunnel.
"""

import hmac
import json
import socket
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hf_llm.errors import UserError
from hf_llm.judging.votes import Votes, annotator_name

LARGEST_BODY = 4096  # bytes; a vote has about 150
SECONDS = 20  # for a request to arrive
TOKEN = "X-Judging-Token"
_POLICY = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"  # fmt: skip # noqa: E501
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_VOTE = {"pair": int, "choice": str, "score_a": int | None, "score_b": int | None, "seconds": int | float | None}


class Refused(Exception):
    """Why a request is not served, with its HTTP status."""

    def __init__(self, status: HTTPStatus, reason: str):
        super().__init__(reason)
        self.status = status


class JudgingServer(ThreadingHTTPServer):
    """Serves the comparison `votes`; `problem` says what keeps answers from coming, or gives None.

    Raises UserError where the port is taken or the host is none of this machine's.
    """

    daemon_threads = True

    def __init__(
        self,
        votes: Votes,
        host: str = "127.0.0.1",
        port: int = 8000,
        problem: Callable[[], str | None] = lambda: None,
        annotator: str | None = None,
    ):
        self.votes, self.problem, self.annotator = votes, problem, annotator
        self.local = is_local(host)
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"cannot listen on {host}, port {port}: {error}; choose another with --port") from error

    @property
    def url(self) -> str:
        """The address to open or to give away."""
        host, port = self.server_address[:2]
        host = socket.gethostname() if host in ("0.0.0.0", "::") else host
        host = f"[{host}]" if ":" in host else host
        return f"http://{host}:{port}/" + ("" if self.local else f"?token={self.votes.token}")

    def state(self, annotator: str) -> dict[str, Any]:
        """What the page shows next: the question, if there is one, and how far this annotator is."""
        question = self.votes.question(annotator)
        shown = None
        if question:
            shown = {"pair": question.pair, "messages": question.messages, "a": question.a, "b": question.b}
        return {"question": shown, "problem": self.problem(), **self.votes.progress(annotator)}


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: JudgingServer
    timeout = SECONDS
    server_version = "hf_llm"
    sys_version = ""

    def do_GET(self) -> None:
        self._serve({"/": self._page, "/page.css": self._style, "/page.js": self._script, "/api/next": self._next})

    def do_POST(self) -> None:
        self._serve({"/api/vote": self._vote, "/api/undo": self._undo})

    def _serve(self, routes: dict[str, Callable[[], None]]) -> None:
        try:
            self._answer(routes)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True  # whoever asked has left; their vote, if any, is on the disk

    def _answer(self, routes: dict[str, Callable[[], None]]) -> None:
        """Serve the request, or say why not."""
        try:
            self._check_host()
            route = routes.get(urlsplit(self.path).path)
            if route is None:
                raise Refused(HTTPStatus.NOT_FOUND, "there is no such page")
            route()
        except Refused as refusal:
            self._send_json({"problem": str(refusal)}, refusal.status)
        except (ValueError, OverflowError, RecursionError) as error:
            self._send_json({"problem": str(error)}, HTTPStatus.BAD_REQUEST)
        except UserError as error:
            self._send_json({"problem": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE)

    def _page(self) -> None:
        if not self.server.local:
            given = parse_qs(urlsplit(self.path).query).get("token", [""])[0]
            self._check_token(given)
        text = _file("page.html").replace("{token}", self.server.votes.token)
        # html.escape is not needed: the name is checked, and json.dumps with ASCII plus these two is safe in a tag.
        name = json.dumps(self.server.annotator or "").replace("<", "\\u003c").replace("&", "\\u0026")
        self._send(text.replace("{annotator}", name.replace("'", "\\u0027")), "text/html")

    def _style(self) -> None:
        shared = files("hf_llm.reporting").joinpath("page.css").read_text(encoding="utf-8")
        self._send(shared + _file("page.css"), "text/css")

    def _script(self) -> None:
        self._send(_file("page.js"), "text/javascript")

    def _next(self) -> None:
        self._check_token(self.headers.get(TOKEN, ""))
        query = parse_qs(urlsplit(self.path).query)
        self._send_json(self.server.state(annotator_name(query.get("annotator", [""])[0])))

    def _vote(self) -> None:
        body = self._body()
        annotator = annotator_name(body.get("annotator"))
        for key, kind in _VOTE.items():
            if not isinstance(body.get(key), kind) or isinstance(body.get(key), bool):
                raise ValueError(f"{key} is {body.get(key)!r}")
        if body.get("seconds") is not None and not 0 <= body["seconds"] < float("inf"):
            raise ValueError(f"seconds is {body['seconds']!r}")
        recorded = self.server.votes.vote(annotator=annotator, **{key: body.get(key) for key in _VOTE})
        self._send_json({"recorded": recorded, **self.server.state(annotator)})

    def _undo(self) -> None:
        annotator = annotator_name(self._body().get("annotator"))
        self._send_json({"undone": self.server.votes.undo(annotator), **self.server.state(annotator)})

    def _body(self) -> dict[str, Any]:
        """The JSON object of a request that has the token, the type and a size that fits."""
        self._check_token(self.headers.get(TOKEN, ""))
        if self.headers.get_content_type() != "application/json":
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body has to be application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "the length of the body is missing")
        if int(length) > LARGEST_BODY:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is longer than {LARGEST_BODY} bytes")
        body = json.loads(self.rfile.read(int(length)))
        if not isinstance(body, dict):
            raise ValueError("the body is no object")
        return body

    def _check_token(self, given: str) -> None:
        if not hmac.compare_digest(given.encode(), self.server.votes.token.encode()):
            raise Refused(HTTPStatus.FORBIDDEN, "the token is missing or wrong; open the address that was printed")

    def _check_host(self) -> None:
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if self.server.local and not is_local(host or ""):
            raise Refused(HTTPStatus.FORBIDDEN, "this page is for this machine only; start it with --host for others")

    def _send_json(self, value: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        self._send(json.dumps(value, ensure_ascii=False), "application/json", status)

    def _send(self, text: str, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        body = text.encode("utf-8", errors="replace")  # an answer may hold half a surrogate pair
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Say nothing of requests that went well or were refused; faults of ours still come as tracebacks."""


def is_local(host: str) -> bool:
    """Whether a host name stands for this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _file(name: str) -> str:
    return files("hf_llm.judging").joinpath(name).read_text(encoding="utf-8")

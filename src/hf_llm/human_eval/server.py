"""Serve the page on which people vote, on one machine or to the people who were given its address.

It listens on this machine only unless told otherwise. A page of another site can neither vote nor read: requests need
the comparison's token in a header of their own, votes a JSON body, and the Host header must name this server
(`hf_llm.reporting.local_server`). Elsewhere than on this machine the token is in the address, and nothing is shown
without it.
"""

import hmac
import json
from collections.abc import Callable
from http import HTTPStatus
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hf_llm.human_eval.report import report_command
from hf_llm.human_eval.votes import VoteDatabase, normalize_annotator_name
from hf_llm.reporting.local_server import PageHandler, PageServer, RequestRefused

MAX_BODY_BYTES = 4096  # a vote has about 150
TOKEN_HEADER = "X-Judging-Token"
_VOTE_FIELDS = {
    "pair": int,
    "choice": str,
    "score_a": int | None,
    "score_b": int | None,
    "seconds": int | float | None,
}


class ArenaServer(PageServer):
    """Serves a comparison to its annotators.

    `problem` returns what prevents answers from being generated, or None. `annotator` is who votes; the page asks for a
    name where it is None. Raises UserError where the port is taken or the host is not one of this machine's.
    """

    def __init__(
        self,
        database: VoteDatabase,
        host: str = "127.0.0.1",
        port: int = 8000,
        problem: Callable[[], str | None] = lambda: None,
        annotator: str | None = None,
    ):
        self.database = database
        self.problem = problem
        self.annotator = annotator
        super().__init__(host, port, ArenaHandler)

    @property
    def url(self) -> str:
        """The address to open or to give to annotators."""
        if self.local:
            return super().url
        return f"{super().url}?token={self.database.token}"

    def next_state(self, annotator: str) -> dict[str, Any]:
        """Return what the page shows next: the question, if there is one, and this annotator's progress."""
        question, progress = self.database.read_next(annotator)
        shown = None
        if question:
            shown = {"pair": question.pair, "messages": question.messages, "a": question.a, "b": question.b}
        state = {"question": shown, "problem": self.problem(), **progress}
        is_finished = progress["done"] >= progress["total"] > 0
        if self.local and is_finished:
            state["report"] = report_command(self.database)
        return state


class ArenaHandler(PageHandler):
    """Answers one request."""

    server: ArenaServer

    def do_GET(self) -> None:
        self.serve_route(
            {
                "/": self._send_page,
                "/page.css": self._send_style,
                "/page.js": self._send_script,
                "/api/next": self._send_next_question,
            }
        )

    def do_POST(self) -> None:
        self.serve_route({"/api/vote": self._record_vote, "/api/undo": self._undo_vote})

    def _send_page(self) -> None:
        if not self.server.local:
            self._check_token(self._query_value("token"))

        # html.escape is not needed: the name is checked, and JSON in ASCII with these three escaped is safe in a tag.
        annotator = json.dumps(self.server.annotator or "")
        for character, escaped in (("<", "\\u003c"), ("&", "\\u0026"), ("'", "\\u0027")):
            annotator = annotator.replace(character, escaped)

        page = _read_asset("page.html").replace("{token}", self.server.database.token)
        self.send_text(page.replace("{annotator}", annotator), "text/html")

    def _send_style(self) -> None:
        shared = files("hf_llm.reporting").joinpath("page.css").read_text(encoding="utf-8")
        self.send_text(shared + _read_asset("page.css"), "text/css")

    def _send_script(self) -> None:
        self.send_text(_read_asset("page.js"), "text/javascript")

    def _send_next_question(self) -> None:
        self._check_token(self.headers.get(TOKEN_HEADER, ""))
        annotator = normalize_annotator_name(self._query_value("annotator"))
        self.send_json(self.server.next_state(annotator))

    def _record_vote(self) -> None:
        body = self._read_body()
        annotator = normalize_annotator_name(body.get("annotator"))
        vote = {}
        for key, kind in _VOTE_FIELDS.items():
            value = body.get(key)
            is_bool = isinstance(value, bool)  # Python takes it for an int
            if is_bool or not isinstance(value, kind):
                raise ValueError(f"{key} is {value!r}")
            vote[key] = value
        seconds = vote["seconds"]
        if seconds is not None and not 0 <= seconds < float("inf"):
            raise ValueError(f"seconds is {seconds!r}")

        recorded = self.server.database.record_vote(annotator=annotator, **vote)
        self.send_json({"recorded": recorded, **self.server.next_state(annotator)})

    def _undo_vote(self) -> None:
        annotator = normalize_annotator_name(self._read_body().get("annotator"))
        undone = self.server.database.undo_last_vote(annotator)
        self.send_json({"undone": undone, **self.server.next_state(annotator)})

    def _query_value(self, key: str) -> str:
        """Return the first value of a key in the address, or an empty text."""
        query = parse_qs(urlsplit(self.path).query)
        return query.get(key, [""])[0]

    def _read_body(self) -> dict[str, Any]:
        """Read the JSON object of a request. Raises Refused or ValueError for a wrong token, type, size or content."""
        self._check_token(self.headers.get(TOKEN_HEADER, ""))
        if self.headers.get_content_type() != "application/json":
            raise RequestRefused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the body has to be application/json")
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal():
            raise RequestRefused(HTTPStatus.LENGTH_REQUIRED, "the length of the body is missing")
        if int(length) > MAX_BODY_BYTES:
            raise RequestRefused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is longer than {MAX_BODY_BYTES} bytes")

        body = json.loads(self.rfile.read(int(length)))
        if not isinstance(body, dict):
            raise ValueError("the body is not a JSON object")
        return body

    def _check_token(self, token: str) -> None:
        if not hmac.compare_digest(token.encode(), self.server.database.token.encode()):
            raise RequestRefused(
                HTTPStatus.FORBIDDEN, "the token is missing or wrong; open the address that was printed"
            )


def _read_asset(name: str) -> str:
    return files("hf_llm.human_eval").joinpath(name).read_text(encoding="utf-8")

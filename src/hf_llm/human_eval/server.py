"""The judging page: a web server for one machine, or for the people one gives its address to.

Listens on this machine only unless told otherwise. A page of another site can neither vote nor read: requests need the
comparison's token in a header of their own, votes a JSON body, and the Host header must name this server
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

from hf_llm.human_eval.votes import Votes, annotator_name
from hf_llm.reporting.local_server import PageHandler, PageServer, Refused

LARGEST_BODY = 4096  # bytes; a vote has about 150
TOKEN = "X-Judging-Token"
_VOTE = {"pair": int, "choice": str, "score_a": int | None, "score_b": int | None, "seconds": int | float | None}


class JudgingServer(PageServer):
    """Serves the comparison `votes`; `problem` says what keeps answers from coming, or gives None.

    Raises UserError where the port is taken or the host is none of this machine's.
    """

    def __init__(
        self,
        votes: Votes,
        host: str = "127.0.0.1",
        port: int = 8000,
        problem: Callable[[], str | None] = lambda: None,
        annotator: str | None = None,
    ):
        self.votes, self.problem, self.annotator = votes, problem, annotator
        super().__init__(host, port, Handler)

    @property
    def url(self) -> str:
        """The address to open or to give away."""
        return super().url + ("" if self.local else f"?token={self.votes.token}")

    def state(self, annotator: str) -> dict[str, Any]:
        """What the page shows next: the question, if there is one, and how far this annotator is."""
        question = self.votes.question(annotator)
        shown = None
        if question:
            shown = {"pair": question.pair, "messages": question.messages, "a": question.a, "b": question.b}
        return {"question": shown, "problem": self.problem(), **self.votes.progress(annotator)}


class Handler(PageHandler):
    """One request."""

    server: JudgingServer

    def do_GET(self) -> None:
        self.serve({"/": self._page, "/page.css": self._style, "/page.js": self._script, "/api/next": self._next})

    def do_POST(self) -> None:
        self.serve({"/api/vote": self._vote, "/api/undo": self._undo})

    def _page(self) -> None:
        if not self.server.local:
            given = parse_qs(urlsplit(self.path).query).get("token", [""])[0]
            self._check_token(given)
        text = _file("page.html").replace("{token}", self.server.votes.token)
        # html.escape is not needed: the name is checked, and json.dumps with ASCII plus these two is safe in a tag.
        name = json.dumps(self.server.annotator or "").replace("<", "\\u003c").replace("&", "\\u0026")
        self.send_text(text.replace("{annotator}", name.replace("'", "\\u0027")), "text/html")

    def _style(self) -> None:
        shared = files("hf_llm.reporting").joinpath("page.css").read_text(encoding="utf-8")
        self.send_text(shared + _file("page.css"), "text/css")

    def _script(self) -> None:
        self.send_text(_file("page.js"), "text/javascript")

    def _next(self) -> None:
        self._check_token(self.headers.get(TOKEN, ""))
        query = parse_qs(urlsplit(self.path).query)
        self.send_json(self.server.state(annotator_name(query.get("annotator", [""])[0])))

    def _vote(self) -> None:
        body = self._body()
        annotator = annotator_name(body.get("annotator"))
        for key, kind in _VOTE.items():
            if not isinstance(body.get(key), kind) or isinstance(body.get(key), bool):
                raise ValueError(f"{key} is {body.get(key)!r}")
        if body.get("seconds") is not None and not 0 <= body["seconds"] < float("inf"):
            raise ValueError(f"seconds is {body['seconds']!r}")
        recorded = self.server.votes.vote(annotator=annotator, **{key: body.get(key) for key in _VOTE})
        self.send_json({"recorded": recorded, **self.server.state(annotator)})

    def _undo(self) -> None:
        annotator = annotator_name(self._body().get("annotator"))
        self.send_json({"undone": self.server.votes.undo(annotator), **self.server.state(annotator)})

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


def _file(name: str) -> str:
    return files("hf_llm.human_eval").joinpath(name).read_text(encoding="utf-8")

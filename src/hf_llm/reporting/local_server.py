"""Serve a web page to this machine, or to the people who are given its address.

Nothing is loaded from elsewhere (Content-Security-Policy), and where only this machine is served, the Host header must
name it (against DNS rebinding). Plain HTTP: over an untrusted network put it behind a tunnel.
"""

import json
import socket
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from hf_llm.core.errors import UserError

REQUEST_SECONDS = 20  # the connection is closed when a request takes longer to arrive
ANY_ADDRESS = ("0.0.0.0", "::")  # a server bound to one of these listens on every interface

_POLICY = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"  # fmt: skip # noqa: E501
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class RequestRefused(Exception):
    """A request that is not served: the HTTP status, and the reason as its message."""

    def __init__(self, status: HTTPStatus, reason: str):
        super().__init__(reason)
        self.status = status


class PageServer(ThreadingHTTPServer):
    """Listen at `host` and `port` (0 for any that is free) and answer each request with a `handler` in a thread.

    Raises UserError where the port is taken, or the host is not an address of this machine.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type["PageHandler"]):
        self.local = is_local(host)
        if ":" in host:
            self.address_family = socket.AF_INET6
        try:
            super().__init__((host, port), handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"cannot listen on {host}, port {port}: {error}; choose another with --port") from error

    def run(self, words: str) -> None:
        """Print the address and `words`, and serve until Ctrl-C."""
        try:
            print(f"{self.url}\n{words}", flush=True)
            self.serve_forever()
        except KeyboardInterrupt:
            print()
        finally:
            self.server_close()

    @property
    def url(self) -> str:
        """The address to open."""
        host, port = self.server_address[:2]
        if host in ANY_ADDRESS:
            host = socket.gethostname()
        if ":" in host:
            host = f"[{host}]"
        return f"http://{host}:{port}/"


class PageHandler(BaseHTTPRequestHandler):
    """One request. A subclass gives `serve_route` in `do_GET` and `do_POST` what each of its addresses does."""

    server: PageServer
    timeout = REQUEST_SECONDS
    server_version = "hf_llm"
    sys_version = ""

    def serve_route(self, routes: dict[str, Callable[[], None]]) -> None:
        """Call the function in `routes` for the address that is requested."""
        try:
            self._answer_request(routes)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True  # the client has disconnected; what it sent, if anything, is on the disk

    def _answer_request(self, routes: dict[str, Callable[[], None]]) -> None:
        """Serve the request, or answer why it is not served."""
        try:
            self._check_host()
            route = routes.get(urlsplit(self.path).path)
            if route is None:
                raise RequestRefused(HTTPStatus.NOT_FOUND, "there is no such page")
            route()
        except RequestRefused as refusal:
            self.send_json({"problem": str(refusal)}, refusal.status)
        except (ValueError, OverflowError, RecursionError) as error:
            self.send_json({"problem": str(error)}, HTTPStatus.BAD_REQUEST)
        except UserError as error:
            self.send_json({"problem": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE)

    def _check_host(self) -> None:
        """Refuse a request that names another host than this machine, where only this machine is served."""
        host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
        if self.server.local and not is_local(host or ""):
            raise RequestRefused(HTTPStatus.FORBIDDEN, "this page is for this machine only")

    def send_json(self, value: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> None:
        """Answer with a JSON object."""
        self.send_text(json.dumps(value, ensure_ascii=False), "application/json", status)

    def send_text(self, text: str, kind: str, status: HTTPStatus = HTTPStatus.OK) -> None:
        """Answer with a text of the MIME type `kind`."""
        body = text.encode("utf-8", errors="replace")  # an answer may hold half a surrogate pair
        self.send_response(status)
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing for requests that were served or refused; our own errors still come as tracebacks."""


def is_local(host: str) -> bool:
    """Whether a host name means this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

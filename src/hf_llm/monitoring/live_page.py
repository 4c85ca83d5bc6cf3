"""The live page: runs under way in a browser on this machine.

The page asks every two seconds for what is new; the server reads it from the runs' files. It listens on this machine
only: from another one, `ssh -L 8000:127.0.0.1:8000 machine` brings it there.
"""

import json
import threading
import time
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hf_llm.monitoring.log_tail import RunLog, Tail, TrainingLog
from hf_llm.pipeline.stages import STAGES
from hf_llm.reporting.local_server import PageHandler, PageServer
from hf_llm.reporting.run_page import CHARTS

HOST = "127.0.0.1"


class LiveServer(PageServer):
    """Serves the page about some runs. Raises UserError where the port is taken."""

    def __init__(self, runs: list[RunLog], port: int = 8000):
        self.runs, self._reading = runs, threading.Lock()
        super().__init__(HOST, port, Handler)

    def state(self, known: dict[str, list[int]]) -> dict[str, Any]:
        """What the runs are now. Of each file only the rows after those in `known`: `{key: [generation, rows]}`."""
        with self._reading:
            for run in self.runs:
                run.read()
            return {"now": time.time(), "runs": [self._run(number, run, known) for number, run in enumerate(self.runs)]}

    def _run(self, number: int, run: RunLog, known: dict[str, list[int]]) -> dict[str, Any]:
        current = run.current
        trainings = [_training(f"{number}/{name}", log, known) for name, log in run.trainings.items()]
        return {"name": run.name, "current": current.name if current else None, "trainings": trainings}


def _training(key: str, log: TrainingLog, known: dict[str, list[int]]) -> dict[str, Any]:
    tails = {"metrics": log.metrics, "alerts": log.alerts, "samples": log.samples}
    return {
        "name": log.name,
        "title": STAGES[log.name].title if log.name in STAGES else log.name,
        **log.status(),
        "news": {name: _news(f"{key}/{name}", tail, known) for name, tail in tails.items()},
    }


def _news(key: str, tail: Tail, known: dict[str, list[int]]) -> dict[str, Any]:
    generation, count = known.get(key, [-1, 0])
    start = count if generation == tail.generation else 0
    return {"key": key, "generation": tail.generation, "from": start, "rows": tail.rows[start:]}


class Handler(PageHandler):
    """One request."""

    server: LiveServer

    def do_GET(self) -> None:
        self.serve({"/": self._page, "/page.css": self._style, "/page.js": self._script, "/api/state": self._state})

    def _page(self) -> None:
        self.send_text(_file("page.html").replace("{charts}", escape(json.dumps(CHARTS))), "text/html")

    def _style(self) -> None:
        shared = files("hf_llm.reporting").joinpath("page.css").read_text(encoding="utf-8")
        self.send_text(shared + _file("page.css"), "text/css")

    def _script(self) -> None:
        self.send_text(_file("page.js"), "text/javascript")

    def _state(self) -> None:
        known = json.loads(parse_qs(urlsplit(self.path).query).get("known", ["{}"])[0])
        if not isinstance(known, dict) or not all(_is_place(place) for place in known.values()):
            raise ValueError("known: {key: [generation, rows]}")
        self.send_json(self.server.state(known))


def _is_place(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(number, int) for number in value)


def _file(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")

"""Serve the live page, which shows runs in a browser while they train.

Every two seconds the page asks for new rows, which the server reads from the runs' files. The server listens on this
machine only; to open the page on another one, forward the port: `ssh -L 8000:127.0.0.1:8000 machine`.
"""

import json
import threading
import time
from dataclasses import asdict
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from hf_llm.evaluation.metrics import METRICS, VALIDATION, list_charts, list_tiles
from hf_llm.monitoring.log_tail import RunLog, Tail, TrainingLog
from hf_llm.pipeline.stages import STAGES
from hf_llm.reporting.local_server import PageHandler, PageServer

HOST = "127.0.0.1"

# What the page has already: a file, as `0/base/metrics` -> the file's generation, and the number of its rows.
KnownRows = dict[str, list[int]]


class LiveServer(PageServer):
    """Serve the page about some runs. Raises UserError where the port is taken."""

    def __init__(self, runs: list[RunLog], port: int = 8000):
        self.runs = runs
        self._reading = threading.Lock()
        super().__init__(HOST, port, LiveHandler)

    def read_state(self, known: KnownRows) -> dict[str, Any]:
        """Read the present status of the runs, and the rows of each file that `known` does not have."""
        with self._reading:
            for run in self.runs:
                run.read()
            runs = [_describe_run(number, run, known) for number, run in enumerate(self.runs)]
            return {"now": time.time(), "runs": runs}


def describe_metrics() -> dict[str, Any]:
    """Describe the charts and the numbers of the page (`hf_llm.evaluation.metrics`) for page.js."""
    charts = [{**asdict(chart), "lines": lines} for chart, lines in list_charts().items()]
    return {
        "charts": charts,
        "tiles": [asdict(tile) for tile in list_tiles()],
        "validation": VALIDATION,
        "unsmoothed": [metric.key for metric in METRICS.values() if not metric.can_smooth],
    }


def _describe_run(number: int, run: RunLog, known: KnownRows) -> dict[str, Any]:
    current = run.current
    trainings = [_describe_training(f"{number}/{name}", log, known) for name, log in run.trainings.items()]
    return {"name": run.name, "current": current.name if current else None, "trainings": trainings}


def _describe_training(key: str, log: TrainingLog, known: KnownRows) -> dict[str, Any]:
    tails = {"metrics": log.metrics, "alerts": log.alerts, "samples": log.samples}
    return {
        "name": log.name,
        "title": STAGES[log.name].title if log.name in STAGES else log.name,
        "evaluated_on": STAGES[log.name].evaluated_on if log.name in STAGES else "",
        **log.status(),
        "news": {name: _list_new_rows(f"{key}/{name}", tail, known) for name, tail in tails.items()},
    }


def _list_new_rows(key: str, tail: Tail, known: KnownRows) -> dict[str, Any]:
    """Return the rows of a file that the page does not have; all of them where the file was replaced since."""
    generation, count = known.get(key, [-1, 0])
    start = count if generation == tail.generation else 0
    return {"key": key, "generation": tail.generation, "from": start, "rows": tail.rows[start:]}


class LiveHandler(PageHandler):
    """One request."""

    server: LiveServer

    def do_GET(self) -> None:
        self.serve_route(
            {
                "/": self._send_page,
                "/page.css": self._send_style,
                "/page.js": self._send_script,
                "/api/state": self._send_state,
            }
        )

    def _send_page(self) -> None:
        metrics = escape(json.dumps(describe_metrics()))
        self.send_text(_read_asset("page.html").replace("{metrics}", metrics), "text/html")

    def _send_style(self) -> None:
        shared_style = files("hf_llm.reporting").joinpath("page.css").read_text(encoding="utf-8")
        self.send_text(shared_style + _read_asset("page.css"), "text/css")

    def _send_script(self) -> None:
        self.send_text(_read_asset("page.js"), "text/javascript")

    def _send_state(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        known = json.loads(query.get("known", ["{}"])[0])
        if not isinstance(known, dict) or not all(_is_pair_of_integers(value) for value in known.values()):
            raise ValueError("known: {key: [generation, rows]}")
        self.send_json(self.server.read_state(known))


def _is_pair_of_integers(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(number, int) for number in value)


def _read_asset(name: str) -> str:
    """Read a file from this module's folder."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")

"""The live page in a real browser, on runs that grow while it looks."""

import json
import urllib.request

import pytest

from hf_llm.core.errors import UserError
from hf_llm.core.jsonl import alerts_file, append_row, metrics_file, replace_rows
from hf_llm.monitoring.live_page import LiveServer
from hf_llm.monitoring.log_tail import RunLog
from tests.human_eval.chromium import PROGRAM, Browser
from tests.monitoring.made_up_run import write_made_up_run
from tests.served import in_thread

TITLES = "[...document.querySelectorAll('#charts figcaption b')].map((title) => title.textContent)"


def serving(*runs):
    """A live page in a thread, for the length of a `with` block."""
    return in_thread(LiveServer([RunLog(run) for run in runs], port=0))


def get(server, path, host=None):
    request = urllib.request.Request(server.url + path, headers={"Host": host} if host else {})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.read().decode()


def state(server, known=None):
    query = urllib.request.quote(json.dumps(known or {}))
    return json.loads(get(server, f"api/state?known={query}"))


def test_the_state_holds_only_rows_that_the_page_does_not_have(tmp_path):
    base = write_made_up_run(tmp_path / "x") / "base"
    with serving(tmp_path / "x") as server:
        first = state(server)["runs"][0]["trainings"][0]["news"]["metrics"]
        assert (first["from"], len(first["rows"])) == (0, 1 + 120 + 6)
        append_row(metrics_file(base), {"step": 1210, "loss": 3.0})
        known = {first["key"]: [first["generation"], len(first["rows"])]}
        news = state(server, known)["runs"][0]["trainings"][0]["news"]["metrics"]
        assert (news["from"], [row["step"] for row in news["rows"]]) == (127, [1210])
        replace_rows(metrics_file(base), [{"training": {}}, {"step": 10, "loss": 3.0}])
        known = {first["key"]: [first["generation"], 128]}
        news = state(server, known)["runs"][0]["trainings"][0]["news"]["metrics"]
        assert (news["from"], len(news["rows"])) == (0, 2)


def test_foreign_host_names_and_malformed_requests_are_refused(tmp_path):
    with serving(write_made_up_run(tmp_path / "x")) as server:
        assert "<title>Training</title>" in get(server, "")
        with pytest.raises(urllib.error.HTTPError, match="403"):
            get(server, "api/state", host="attacker.example")
        for path in ("api/state?known=no", "api/state?known=[1]", 'api/state?known={"a":3}'):
            with pytest.raises(urllib.error.HTTPError, match="400"):
                get(server, urllib.request.quote(path, safe="/?=:"))


def test_a_taken_port_is_a_user_error(tmp_path):
    with serving(write_made_up_run(tmp_path / "x")) as server, pytest.raises(UserError, match="another with --port"):
        LiveServer([], port=server.server_address[1])


@pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")
def test_the_page_follows_a_run(tmp_path):
    run = write_made_up_run(tmp_path / "gpt125m")
    with serving(run) as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.wait(f"{TITLES}.length > 5")
        titles = browser.value(TITLES)
        assert titles[:5] == [
            "Loss", "Bits per byte, validation", "Learning rate", "Gradient norm", "Gradient norm by part",
        ]  # fmt: skip
        assert browser.value("document.querySelectorAll('#charts .chart')[0].querySelectorAll('path.line').length") == 2
        assert (
            browser.value("document.querySelectorAll('#charts .chart')[0].querySelectorAll('path.alert').length") == 1
        )
        words = browser.value("document.body.innerText")
        for wanted in ("step 1,200 of 2,000", "loss spike: 5.912", "411k", "$3.33", "<script>document.title", "3.069"):
            assert wanted in words
        before = browser.value("document.querySelector('#charts path.line').getAttribute('d')")

        append_row(metrics_file(run / "base"), {"step": 1210, "loss": 2.5, "grad_norm": None, "cost": 3.4})
        append_row(alerts_file(run / "base"), {"step": 1210, "kind": "slow", "text": "slow: <b>3</b>", "time": 9e9})
        browser.wait("document.getElementById('numbers').innerText.includes('2.500')")
        browser.wait("document.getElementById('alerts').innerText.includes('slow: <b>3</b>')")
        assert browser.value("document.querySelector('#charts path.line').getAttribute('d')") != before

        browser.click("#log")
        browser.value("document.getElementById('smoothing').value = 0.9")
        browser.value("document.getElementById('smoothing').dispatchEvent(new Event('input'))")
        browser.wait("document.querySelectorAll('path.raw').length > 3")
        for over in ("tokens_seen", "hours", "step"):
            browser.value(f"document.getElementById('x').value = '{over}'")
            browser.value("document.getElementById('x').dispatchEvent(new Event('input'))")
            assert browser.value("!document.querySelector('#charts path.line').getAttribute('d').includes('NaN')")
        browser.click("#stages button:nth-of-type(2)")
        browser.wait(f"{TITLES}.includes('Token accuracy')")
        browser.value("document.getElementById('more').open = true")
        browser.wait("document.querySelector('#more').innerText.includes('entropy')")
        assert browser.errors == []
        assert browser.value("document.title") == "gpt125m"
        assert {url.split("/")[2] for url in browser.requested} == {server.url.split("/")[2]}


@pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")
def test_two_runs_share_charts_and_an_empty_run_says_so(tmp_path):
    first, second = write_made_up_run(tmp_path / "first"), write_made_up_run(tmp_path / "second", steps=600, seed=4)
    (tmp_path / "third").mkdir()
    with serving(first, second) as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.wait(f"{TITLES}.length > 4")
        assert browser.value("document.querySelectorAll('#charts .chart')[0].querySelectorAll('path.line').length") == 4
        assert browser.value("[...document.querySelector('.legend').children].map((line) => line.textContent)") == [
            "first training", "first validation", "second training", "second validation",
        ]  # fmt: skip
        assert browser.value("document.querySelectorAll('#runs tr').length") == 3
        with serving(tmp_path / "third") as empty:
            browser.open(empty.url)
            browser.wait("document.body.innerText.includes('Nothing has been trained yet')")
        assert browser.errors == []

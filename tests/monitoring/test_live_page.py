"""The live page in a real browser, on runs that grow while it looks."""

import json
import shutil
import time
import urllib.request

import pytest

from hf_llm.core.errors import UserError
from hf_llm.core.jsonl import alerts_file, append_row, metrics_file, replace_rows
from hf_llm.monitoring.live_page import LiveServer
from hf_llm.monitoring.log_tail import RunLog
from tests.human_eval.chromium import PROGRAM, Browser, keep_screenshot
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
            "Loss", "Bits per byte on the validation text", "Learning rate", "Gradient norm", "Gradient norm by part",
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


STATUS = "document.getElementById('status').textContent"
PRESSED = "document.querySelector('#stages [aria-pressed=true]').textContent"


def choose(browser, control, value):
    browser.value(f"document.getElementById('{control}').value = '{value}'")
    browser.value(f"document.getElementById('{control}').dispatchEvent(new Event('input'))")


@pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")
def test_two_runs_open_on_a_stage_of_both_and_a_reload_keeps_what_was_chosen(tmp_path):
    first, second = write_made_up_run(tmp_path / "first"), write_made_up_run(tmp_path / "second", seed=4)
    shutil.rmtree(second / "sft")
    append_row(metrics_file(first / "sft"), {"step": 130, "loss": 1.5, "time": time.time() + 60})  # at work now
    with serving(first, second) as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.wait(f"{TITLES}.length > 4")
        assert browser.value(PRESSED) == "base"
        assert browser.value(STATUS) == "Pretraining of first, second"

        browser.click("#stages button:nth-of-type(2)")
        browser.wait(f"{STATUS}.startsWith('Supervised fine-tuning of first')")
        assert "second: none" in browser.value(STATUS)
        choose(browser, "smoothing", 0.6)
        choose(browser, "x", "tokens_seen")
        browser.click("#log")
        browser.call("Page.reload")
        browser.wait(f"document.readyState === 'complete' && {TITLES}.length > 2")
        assert browser.value(PRESSED) == "sft"
        controls = "['smoothing', 'x'].map((name) => document.getElementById(name).value)"
        assert browser.value(controls) == ["0.6", "tokens_seen"]
        assert browser.value("document.getElementById('log').checked")
        axes = "[...document.querySelectorAll('#charts .axis')].map((axis) => axis.textContent)"
        assert set(browser.value(axes)) == {"tokens"}
        assert browser.errors == []


@pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")
def test_smoothing_does_not_lag_and_leaves_schedules_and_maxima_alone(tmp_path):
    run = write_made_up_run(tmp_path / "x")
    with serving(run) as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.wait(f"{TITLES}.length > 4")
        for weight in (0.3, 0.9, 0.99):
            choose(browser, "smoothing", weight)
            straight = "Array.from({ length: 200 }, (_, i) => [i, 5 - i / 50, i])"
            differences = f"smooth({straight}).map(([x, y]) => Math.abs(y - (5 - x / 50)))"
            assert browser.value(f"Math.max(...{differences})") < 1e-6  # also at both ends
            with_gap = "[[0, 1, 0], [1, NaN, 1], [2, 2, 2], [3, 3, 3], [4, 4, 4], [5, 5, 5]]"
            assert browser.value(f"smooth({with_gap}).map(([x, y]) => Number.isFinite(y))") == [
                True,
                False,
                *[True] * 4,
            ]
        smoothed = "document.querySelectorAll('#charts path.smoothed').length"
        drawn = (
            "Object.fromEntries([...figures].map(([title, f]) => [title, f.series.some((l) => l.points !== l.raw)]))"
        )
        assert browser.value(smoothed) > 2
        by_title = browser.value(drawn)
        assert by_title["Loss"] and by_title["Gradient norm"]
        assert not by_title["Learning rate"] and not by_title["Bits per byte, validation"]
        kinds = "figures.get('Memory, GiB').series.map((line) => [line.name, line.points !== line.raw])"
        assert browser.value(kinds) == [["peak so far", False], ["now", True]]
        assert browser.value("canSmooth('device_hours', [[0, 1, 0], [1, 2, 1], [2, 2, 2]])") is False
        assert browser.value("canSmooth('entropy', [[0, 1, 0], [1, 2, 1], [2, 1.5, 2]])") is True


@pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")
def test_the_values_of_a_chart_are_read_with_keys_and_are_those_of_the_log(tmp_path):
    run = write_made_up_run(tmp_path / "x")
    rows = [json.loads(line) for line in metrics_file(run / "base").read_text().splitlines()]
    losses = {row["step"]: row["loss"] for row in rows if "loss" in row}
    with serving(run) as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.wait(f"{TITLES}.length > 4")
        choose(browser, "smoothing", 0.9)
        browser.value("document.querySelector('#charts .plot').focus()")
        tip = "document.querySelector('#charts .tip').textContent"
        for key, step in (("ArrowRight", 1200), ("ArrowLeft", 1190), ("Home", 10), ("ArrowRight", 20)):
            browser.press(key)
            shown = browser.value(tip)
            assert shown.startswith(f"step {step:,}")
            assert f"training {float(f'{losses[step]:.5g}'):g} (smoothed " in shown
        browser.press("Escape")
        assert browser.value("document.querySelector('#charts .tip').hidden")


@pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")
def test_a_page_that_cannot_run_its_script_says_what_to_do(tmp_path):
    with serving(write_made_up_run(tmp_path / "x")) as server, Browser(tmp_path / "profile") as browser:
        browser.run_scripts(False)
        browser.open(server.url)
        shown = browser.value("document.body.innerText")
        assert "draws with JavaScript" in shown and "hf_llm.watch" in shown
        assert "connecting" not in shown


@pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_of_the_page_is_wider_than_a_phone(tmp_path, dark):
    first, second = write_made_up_run(tmp_path / "a-rather-long-name"), write_made_up_run(tmp_path / "second", seed=4)
    for runs in ([first], [first, second]):
        with serving(*runs) as server, Browser(tmp_path / f"profile{len(runs)}") as browser:
            browser.resize(390, 844, dark)
            browser.open(server.url)
            browser.wait(f"{TITLES}.length > 4")
            choose(browser, "smoothing", 0.9)
            for plot in range(3):
                browser.value(f"document.querySelectorAll('#charts .plot')[{plot}].focus()")
                browser.press("End")
                assert browser.value("document.documentElement.scrollWidth <= innerWidth")
            is_cut = "document.querySelector('.wide').scrollWidth > document.querySelector('.wide').clientWidth + 1"
            assert browser.value("document.getElementById('scrolls').hidden") is not browser.value(is_cut)
            keep_screenshot(browser, f"live-{len(runs)}-{'dark' if dark else 'light'}")

"""The pages in a real browser: nothing is cut on a phone, values are read without a mouse, colours are told apart."""

import json
import re
from importlib.resources import files

import pytest

from hf_llm.experiments.page import render_page as render_experiment
from hf_llm.human_eval.report import compute_results
from hf_llm.human_eval.report import render_page as render_votes
from hf_llm.reporting.corpus_page import render_corpus_page
from hf_llm.reporting.run_page import render_run_page
from tests.human_eval.chromium import PROGRAM, Browser, keep_screenshot
from tests.human_eval.comparison import make_database, vote_on_all

needs_chromium = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")
MIN_CONTRAST = 3  # of graphics to what is beside them (WCAG 2.1, 1.4.11)


def make_experiment() -> dict:
    """The results of an ablation, with numbers made up."""
    rows = []
    for number in range(3):
        mean = 1.75 + number / 50
        rows.append(
            {
                "name": f"positions-learned-{number}", "changes": {}, "fitted": {}, "parameters": 1_234_567,
                "flops_per_token": 7.1e6, "tokens": 20_000_000, "tokens_per_second": 41_234.0,
                "scores": {1: mean, 2: mean}, "failures": {}, "runs": {1: "a", 2: "b"}, "mean": mean,
                "interval": (mean - 0.01, mean + 0.01), "difference": number / 50,
                "difference_interval": (number / 50 - 0.01, number / 50 + 0.01), "verdict": "worse",
            }
        )  # fmt: skip
    return {
        "name": "tiny", "equal": "flops", "compared": True, "metric": "bits per byte", "seeds": [1, 2],
        "variants": rows, "made": "2026-01-01 10:00",
    }  # fmt: skip


@pytest.fixture(scope="module")
def pages(run, tmp_path_factory):
    """The folder of the pages, as `<name>.html`."""
    folder = tmp_path_factory.mktemp("pages")
    database = make_database(folder, prompts=12)
    vote_on_all(database, "Ada", right=0.7, score_a=4)
    vote_on_all(database, "Ben", right=0.6)
    (folder / "run.html").write_text(render_run_page(run.root, run.tree))
    (folder / "corpus.html").write_text(render_corpus_page(run.root, "tiny"))
    (folder / "votes.html").write_text(render_votes(compute_results(database), "votes"))
    (folder / "ablation.html").write_text(render_experiment(make_experiment(), []))
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@needs_chromium
@pytest.mark.parametrize("name", ["run", "corpus", "votes", "ablation"])
def test_no_page_is_wider_than_the_screen_and_a_wider_table_says_that_it_scrolls(pages, browser, name):
    browser.open(f"file://{pages}/{name}.html")
    for width in (320, 390, 1280):
        for dark in (False, True):
            browser.resize(width, 844, dark)
            assert browser.value("document.documentElement.scrollWidth <= innerWidth"), width
            browser.wait(
                "[...document.querySelectorAll('.wide')].every((box) => (box.scrollWidth > box.clientWidth + 1) === "
                "Boolean(box.previousElementSibling?.classList.contains('scrolls')))"
            )
            outside = (
                "[...document.querySelectorAll('body *')].filter((one) => !one.closest('.wide, pre') && "
                "one.getBoundingClientRect().right > innerWidth + 1).map((one) => one.outerHTML.slice(0, 80))"
            )
            assert browser.value(outside) == []
            keep_screenshot(browser, f"{name}-{width}-{'dark' if dark else 'light'}")
    assert browser.errors == []


@needs_chromium
def test_the_values_of_a_chart_are_read_with_keys_and_are_those_of_the_log(run, pages, browser):
    log = json.loads((run.root / "base" / "trainer_state.json").read_text())["log_history"]
    losses = {entry["step"]: entry["loss"] for entry in log if "loss" in entry}
    browser.resize(390, 844)
    browser.open(f"file://{pages}/run.html")
    browser.value("document.querySelector('.plot').focus()")
    for key, step in (("ArrowRight", 30), ("ArrowLeft", 28), ("Home", 2), ("ArrowRight", 4), ("End", 30)):
        browser.press(key)
        shown = browser.value("document.querySelector('.tip').textContent")
        assert re.match(rf"step {step}\b", shown)
        assert f"training {float(f'{losses[step]:.5g}'):g}" in shown
        assert browser.value("document.documentElement.scrollWidth <= innerWidth")
    browser.press("Escape")
    assert browser.value("document.querySelector('.tip').hidden")


@needs_chromium
def test_a_finger_shows_a_value_that_stays(pages, browser):
    browser.resize(390, 844)
    browser.open(f"file://{pages}/run.html")
    touch = (
        "for (const type of ['pointerdown', 'pointerup', 'pointerleave']) plot.dispatchEvent(new PointerEvent(type, "
        "{ pointerType: 'touch', bubbles: type !== 'pointerleave', clientX: plot.getBoundingClientRect().left + 50 }))"
    )
    browser.value(f"(() => {{ const plot = document.querySelector('.plot'); {touch} }})()")
    assert browser.value("document.querySelector('.tip').hidden") is False
    browser.value("document.body.dispatchEvent(new PointerEvent('pointerdown', { bubbles: true }))")
    assert browser.value("document.querySelector('.tip').hidden") is True


@needs_chromium
def test_print_keeps_legends_and_whole_tables(pages, browser):
    browser.resize(720, 1000)
    browser.open(f"file://{pages}/run.html")
    browser.print_with_style()
    border = "getComputedStyle(document.querySelector('.legend span'), '::before').borderTopWidth"
    assert browser.value(border) == "2px"  # a background would not be printed
    assert browser.value("[...document.querySelectorAll('.wide')].every((box) => box.scrollWidth <= box.clientWidth)")
    cut = (
        "[...document.querySelectorAll('.plot span')].map((label) => label.getBoundingClientRect())"
        ".filter((box) => box.right > innerWidth || box.left < 0).length"
    )
    assert browser.value(cut) == 0
    browser.print_with_style(False)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_line_stands_out_from_the_paper(theme):
    style = files("hf_llm.reporting").joinpath("page.css").read_text(encoding="utf-8")
    light, dark = re.findall(r":root \{\s*(?:color-scheme: light dark;)?(.*?)\}", style, re.DOTALL)[:2]
    colours = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", {"light": light, "dark": dark}[theme]))
    lines = [name for name in colours if name.startswith("line-")]
    assert len(lines) == 6
    for name in (*lines, "accent", "soft"):
        assert contrast(colours[name], colours["paper"]) >= MIN_CONTRAST, name
    live = files("hf_llm.monitoring").joinpath("page.css").read_text(encoding="utf-8")
    assert "opacity" not in re.search(r"path\.raw \{[^}]*\}", live)[0]


def contrast(one: str, other: str) -> float:
    """The contrast of two colours (WCAG 2.1)."""
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def luminance(colour: str) -> float:
    weights = (0.2126, 0.7152, 0.0722)
    total = 0.0
    for position, weight in zip((1, 3, 5), weights, strict=True):
        value = int(colour[position : position + 2], 16) / 255
        total += weight * (value / 12.92 if value <= 0.03928 else ((value + 0.055) / 1.055) ** 2.4)
    return total

"""The page as people use it: a real browser, real keys and clicks."""

import itertools
import os
from pathlib import Path

import pytest

from hf_llm.human_eval.report import results
from hf_llm.human_eval.votes import Votes, create_votes
from tests.human_eval.chromium import PROGRAM, Browser, wait_for
from tests.human_eval.comparison import plan, serving

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")
NASTY = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script> & \u202eright to left"


def judged(browser: Browser, count: int, total: int) -> None:
    browser.wait(f"document.getElementById('count').textContent === '{count} of {total}'")


def begin(browser: Browser, url: str, name: str) -> None:
    browser.open(url)
    browser.wait("!document.getElementById('hello').hidden")
    for letter in name:
        browser.press(letter)
    browser.press("Enter")
    browser.wait("!document.getElementById('question').hidden")


def side_of(browser: Browser, model: str) -> str:
    """A or B, whichever shows this model's answer."""
    return browser.value(
        "[...document.querySelectorAll('.answer')]"
        f".find((side) => side.querySelector('.text').textContent.startsWith('{model}')).dataset.side"
    )


def test_two_annotators_cast_40_votes_one_by_keyboard_only(tmp_path):
    create_votes(tmp_path / "v.sqlite", plan(20))
    votes = Votes(tmp_path / "v.sqlite")
    with serving(votes) as server, Browser(tmp_path / "profile") as browser:
        begin(browser, server.url, "ada")
        for done in range(20):
            side = side_of(browser, "good")
            if done == 3:
                browser.press("2" if side == "b" else "5")
                browser.press("7" if side == "a" else "0")
            browser.press({"a": "ArrowLeft", "b": "b"}[side] if done % 5 else "t")
            judged(browser, done + 1, 20)
        browser.press("u")
        judged(browser, 19, 20)
        browser.press("x")
        judged(browser, 20, 20)
        assert "Thank you" in browser.value("document.getElementById('pause').textContent")

        browser.click("#who")
        browser.value("document.getElementById('name').value = 'Ben Ten'")
        browser.click(".go")
        judged(browser, 0, 20)
        for done in range(20):
            side = side_of(browser, "good")
            browser.click(f'[data-side="{side}"] .stars button:nth-of-type(4)')
            browser.click(f'[data-choice="{side if done < 15 else "ab".replace(side, "")}"]')
            judged(browser, done + 1, 20)
        assert browser.errors == []
        assert {url.split("/")[2] for url in browser.requested} == {server.url.split("/")[2]}
    found = results(votes)
    assert found["votes"] == 40
    assert found["annotators"]["ada"]["choices"]["tie"] == 4
    assert found["annotators"]["ada"]["choices"]["bad"] == 1
    assert [v.winner for v in votes.standing() if v.annotator == "Ben Ten"] == ["good"] * 15 + ["weak"] * 5
    assert found["scores"]["good"] == {"mean": pytest.approx((19 * 4 + 4.5) / 20), "scores": 21} | {
        "interval": found["scores"]["good"]["interval"]
    }
    assert found["scores"]["weak"]["mean"] == 2
    assert all(v.seconds is not None for v in votes.standing())


def test_whatever_a_model_says_stays_text(tmp_path):
    comparison = plan(1)
    comparison.prompts = [[{"role": "system", "content": NASTY}, {"role": "user", "content": NASTY}]]
    comparison.answers = {"good": {0: NASTY}, "weak": {0: ""}}
    create_votes(tmp_path / "v.sqlite", comparison)
    with (
        serving(Votes(tmp_path / "v.sqlite"), annotator="</script><b>") as server,
        Browser(tmp_path / "profile") as browser,
    ):
        browser.open(server.url)
        browser.wait("!document.getElementById('question').hidden")
        assert browser.value("document.title") == "Which answer is better?"
        assert browser.value("document.querySelectorAll('main img, main script, header b').length") == 0
        texts = browser.value("[...document.querySelectorAll('#prompt p')].map((p) => p.textContent)")
        assert texts == [NASTY, NASTY]
        shown = browser.value("[...document.querySelectorAll('.text')].map((t) => t.textContent)")
        assert sorted(shown) == sorted([NASTY, "no answer"])
        assert browser.value("document.getElementById('who').textContent") == "</script><b>"


def test_a_vote_that_cannot_be_sent_is_said_and_given_again(tmp_path):
    create_votes(tmp_path / "v.sqlite", plan(3))
    votes = Votes(tmp_path / "v.sqlite")
    with Browser(tmp_path / "profile") as browser:
        with serving(votes) as server:
            begin(browser, server.url, "ada")
            address = server.server_address
        browser.press("a")
        browser.wait("!document.getElementById('problem').hidden")
        assert "Nothing is lost" in browser.value("document.getElementById('problem').textContent")
        assert votes.standing() == []
        with serving(votes, *address):
            browser.press("a")
            judged(browser, 1, 3)
            assert browser.value("document.getElementById('problem').hidden")
    assert [v.choice for v in votes.standing()] == ["a"]


def test_pairs_appear_by_themselves_when_their_answers_are_written(tmp_path):
    comparison = plan(2)
    late, comparison.answers = comparison.answers, {}
    create_votes(tmp_path / "v.sqlite", comparison)
    votes = Votes(tmp_path / "v.sqlite")
    with serving(votes, annotator="Ada") as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.wait("document.getElementById('pause').textContent.includes('being written')")
        for name, texts in late.items():
            votes.add_answers(name, texts)
        browser.wait("!document.getElementById('question').hidden")


def test_nothing_is_cut_off_on_any_screen_light_or_dark(tmp_path):
    comparison = plan(2)
    for texts in comparison.answers.values():
        texts.update({number: f"{text} {'very ' * 200}long" for number, text in texts.items()})
    create_votes(tmp_path / "v.sqlite", comparison)
    with serving(Votes(tmp_path / "v.sqlite"), annotator="Ada") as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.wait("!document.getElementById('question').hidden")
        papers = set()
        for width, dark in itertools.product((360, 820, 1440), (False, True)):
            browser.resize(width, 800, dark)
            assert browser.value("document.documentElement.scrollWidth <= innerWidth")
            browser.value("window.scrollTo(0, 1e6)")
            last = "document.querySelector('.two').lastElementChild.getBoundingClientRect().bottom"
            assert browser.value(f"{last} <= document.getElementById('choices').getBoundingClientRect().top")
            papers.add((dark, browser.value("getComputedStyle(document.body).backgroundColor")))
            keep(browser, f"page-{width}-{'dark' if dark else 'light'}")
        assert len(papers) == len({paper for _, paper in papers}) == 2


def keep(browser: Browser, name: str) -> None:
    """Keep a picture for a person to look at, in the folder that HF_LLM_SCREENSHOTS names."""
    if folder := os.environ.get("HF_LLM_SCREENSHOTS"):
        browser.value("window.scrollTo(0, 0)")
        wait_for(lambda: browser.value("scrollY === 0"), "the top")
        browser.screenshot(Path(folder) / f"{name}.png")

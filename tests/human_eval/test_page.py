"""The page as people use it: a real browser, real keys and clicks."""

import itertools

import pytest

from hf_llm.human_eval.report import compute_results, report_command
from hf_llm.human_eval.votes import VoteDatabase, create_database
from tests.human_eval.chromium import PROGRAM, Browser, keep_screenshot, wait_until
from tests.human_eval.comparison import plan, serving

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="needs Chromium")
NASTY = "<img src=x onerror=document.title='owned'><script>document.title='owned'</script> & \u202eright to left"


def wait_until_count(browser: Browser, count: int, total: int) -> None:
    browser.wait(f"document.getElementById('count').textContent === '{count} of {total}'")


def begin_voting(browser: Browser, url: str, name: str) -> None:
    browser.open(url)
    browser.wait("!document.getElementById('hello').hidden")
    for letter in name:
        browser.press(letter)
    browser.press("Enter")
    browser.wait("!document.getElementById('question').hidden")


def find_side(browser: Browser, model: str) -> str:
    """A or B, whichever shows this model's answer."""
    return browser.value(
        "[...document.querySelectorAll('.answer')]"
        f".find((side) => side.querySelector('.text').textContent.startsWith('{model}')).dataset.side"
    )


def test_two_annotators_cast_40_votes_one_by_keyboard_only(tmp_path):
    create_database(tmp_path / "v.sqlite", plan(20))
    database = VoteDatabase(tmp_path / "v.sqlite")
    with serving(database) as server, Browser(tmp_path / "profile") as browser:
        begin_voting(browser, server.url, "ada")
        for done in range(20):
            side = find_side(browser, "good")
            if done == 3:
                browser.press("2" if side == "b" else "5")
                browser.press("7" if side == "a" else "0")
            browser.press({"a": "ArrowLeft", "b": "b"}[side] if done % 5 else "t")
            wait_until_count(browser, done + 1, 20)
        browser.press("u")
        wait_until_count(browser, 19, 20)
        browser.press("x")
        wait_until_count(browser, 20, 20)
        assert "Thank you" in browser.value("document.getElementById('pause').textContent")

        browser.click("#who")
        browser.value("document.getElementById('name').value = 'Ben Ten'")
        browser.click(".go")
        wait_until_count(browser, 0, 20)
        for done in range(20):
            side = find_side(browser, "good")
            browser.click(f'[data-side="{side}"] .stars button:nth-of-type(4)')
            browser.click(f'[data-choice="{side if done < 15 else "ab".replace(side, "")}"]')
            wait_until_count(browser, done + 1, 20)
        assert browser.errors == []
        assert {url.split("/")[2] for url in browser.requested} == {server.url.split("/")[2]}
    results = compute_results(database)
    assert results["votes"] == 40
    assert results["annotators"]["ada"]["choices"]["tie"] == 4
    assert results["annotators"]["ada"]["choices"]["bad"] == 1
    assert [v.winner for v in database.read_votes() if v.annotator == "Ben Ten"] == ["good"] * 15 + ["weak"] * 5
    assert results["scores"]["good"] == {"mean": pytest.approx((19 * 4 + 4.5) / 20), "scores": 21} | {
        "interval": results["scores"]["good"]["interval"]
    }
    assert results["scores"]["weak"]["mean"] == 2
    assert all(v.seconds is not None for v in database.read_votes())


def test_the_text_of_a_model_is_never_markup(tmp_path):
    comparison = plan(1)
    comparison.prompts = [[{"role": "system", "content": NASTY}, {"role": "user", "content": NASTY}]]
    comparison.answers = {"good": {0: NASTY}, "weak": {0: ""}}
    create_database(tmp_path / "v.sqlite", comparison)
    with (
        serving(VoteDatabase(tmp_path / "v.sqlite"), annotator="</script><b>") as server,
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


def test_a_vote_that_cannot_be_sent_is_reported_and_can_be_repeated(tmp_path):
    create_database(tmp_path / "v.sqlite", plan(3))
    database = VoteDatabase(tmp_path / "v.sqlite")
    with Browser(tmp_path / "profile") as browser:
        with serving(database) as server:
            begin_voting(browser, server.url, "ada")
            address = server.server_address
        browser.press("a")
        browser.wait("!document.getElementById('problem').hidden")
        assert "Nothing is lost" in browser.value("document.getElementById('problem').textContent")
        assert database.read_votes() == []
        with serving(database, *address):
            browser.press("a")
            wait_until_count(browser, 1, 3)
            assert browser.value("document.getElementById('problem').hidden")
    assert [v.choice for v in database.read_votes()] == ["a"]


def test_pairs_appear_by_themselves_when_their_answers_are_generated(tmp_path):
    comparison = plan(2)
    late, comparison.answers = comparison.answers, {}
    create_database(tmp_path / "v.sqlite", comparison)
    database = VoteDatabase(tmp_path / "v.sqlite")
    with serving(database, annotator="Ada") as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.wait("document.getElementById('pause').textContent.includes('being generated')")
        for name, texts in late.items():
            database.add_answers(name, texts)
        browser.wait("!document.getElementById('question').hidden")


def test_nothing_is_cut_off_on_any_screen_light_or_dark(tmp_path):
    comparison = plan(2)
    for texts in comparison.answers.values():
        texts.update({number: f"{text} {'very ' * 200}long" for number, text in texts.items()})
    create_database(tmp_path / "v.sqlite", comparison)
    with (
        serving(VoteDatabase(tmp_path / "v.sqlite"), annotator="Ada") as server,
        Browser(tmp_path / "profile") as browser,
    ):
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
            keep_screenshot(browser, f"page-{width}-{'dark' if dark else 'light'}")
        assert len(papers) == len({paper for _, paper in papers}) == 2


def test_the_page_ends_with_the_command_of_the_results(tmp_path):
    create_database(tmp_path / "v.sqlite", plan(1))
    database = VoteDatabase(tmp_path / "v.sqlite")
    with serving(database, annotator="Ada") as server, Browser(tmp_path / "profile") as browser:
        browser.open(server.url)
        browser.wait("!document.getElementById('question').hidden")
        assert browser.value("document.getElementById('next').offsetParent") is None
        browser.press("a")
        wait_until_count(browser, 1, 1)
        assert browser.value("document.querySelector('#next pre').innerText") == report_command(database)


def test_no_choice_stays_marked_on_the_next_pair(tmp_path):
    create_database(tmp_path / "v.sqlite", plan(3))
    with (
        serving(VoteDatabase(tmp_path / "v.sqlite"), annotator="Ada") as server,
        Browser(tmp_path / "profile") as browser,
    ):
        browser.resize(390, 844)
        browser.call("Emulation.setTouchEmulationEnabled", enabled=True)
        browser.call("Emulation.setEmulatedMedia", features=[{"name": "hover", "value": "none"}])
        browser.open(server.url)
        browser.wait("!document.getElementById('question').hidden")
        style = "(({ borderColor, outlineStyle }) => [borderColor, outlineStyle])(getComputedStyle(%s))"
        button = style % "document.querySelector('[data-choice=a]')"
        before = browser.value(button)
        browser.click('[data-choice="a"]')
        wait_until_count(browser, 1, 3)
        assert browser.value("document.activeElement === document.body")
        assert browser.value("document.querySelectorAll('.chosen').length") == 0
        wait_until(lambda: browser.value(button) == before, "the mark to go")


def test_the_page_says_which_score_is_best(tmp_path):
    create_database(tmp_path / "v.sqlite", plan(1))
    with (
        serving(VoteDatabase(tmp_path / "v.sqlite"), annotator="Ada") as server,
        Browser(tmp_path / "profile") as browser,
    ):
        browser.open(server.url)
        browser.wait("!document.getElementById('question').hidden")
        assert browser.value("document.querySelector('.stars').innerText").endswith("5 is best")
        assert "5 (best)" in browser.value("document.querySelector('.stars').getAttribute('aria-label')")

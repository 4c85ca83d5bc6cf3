"""Judging as a person runs it: from two models of a run to votes, a report and a model trained on them."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import urllib.request
from html.parser import HTMLParser
from pathlib import Path

import pytest

from hf_llm.data.chat.loaders import ConversationSource, load_preferences
from hf_llm.human_eval.answers import Background, make_answers
from hf_llm.human_eval.votes import Votes
from hf_llm.judge import main, usual_place
from tests.human_eval.chromium import wait_for
from tests.tiny_recipe import run_module

MODELS = ("runs/tiny/sft", "runs/tiny/dpo")
SHORT = ("--max-new-tokens", "12", "--take", "12")
DATA = os.environ.get("HF_LLM_DATA")


@pytest.fixture
def run(tiny_life, tmp_path, monkeypatch):
    """A folder where the tiny run is finished, and a place for votes of its own."""
    for item in tiny_life.iterdir():
        if item.name != "runs":
            (tmp_path / item.name).symlink_to(item)
    (tmp_path / "runs/tiny").mkdir(parents=True)
    for item in (tiny_life / "runs/tiny").iterdir():
        if item.name != "judging":
            (tmp_path / "runs/tiny" / item.name).symlink_to(item)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([str(argument) for argument in arguments])
    assert stop.value.code == 2
    return capsys.readouterr().err


def answers_file(folder: Path, rows: int = 8, **more: str) -> Path:
    path = folder / "answers.jsonl"
    texts = {"ours": "right", "gpt2": "wrong"} | more
    lines = [{"prompt": f"Question {n}?", **{k: f"{t} {n}" for k, t in texts.items()}} for n in range(rows)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def rows_of(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def judge_by_length(votes: Votes, annotator: str) -> None:
    while question := votes.question(annotator):
        votes.vote(question.pair, annotator, "a" if len(question.a) >= len(question.b) else "b", 4, 2, 1.0)


@pytest.mark.parametrize("stage", ["dpo", pytest.param("reward", marks=pytest.mark.slow)])
def test_from_two_models_to_a_model_trained_on_the_votes(run, capsys, stage):
    main([*MODELS, *SHORT, "--prepare"])
    assert "every answer is there" in capsys.readouterr().out
    votes = Votes(run / "runs/tiny/judging/sft-dpo.sqlite")
    assert votes.missing() == {}
    made = votes.models()
    for name in ("sft", "dpo"):
        manifest = json.loads((run / f"runs/tiny/{name}/manifest.json").read_text())
        assert made[name]["digest"] == manifest["digest"]
        assert made[name]["sampling"]["max_new_tokens"] == 12
    for annotator in ("Ada", "Ben"):
        judge_by_length(votes, annotator)
    main([*MODELS, *SHORT, "--report", "--export", "judged/preferences.jsonl"])
    said = capsys.readouterr().out
    assert "rating" in said and "preferences" in said

    rows = rows_of("judged/preferences.jsonl")
    progress = votes.progress("Ada")
    assert len(rows) == progress["done"] > 6
    assert all(len(row["chosen"][0]["content"]) >= len(row["rejected"][0]["content"]) - 2 for row in rows)
    source = ConversationSource(license="mit", path="judged/preferences.jsonl")
    *_, counts = load_preferences([source], 0.2, 1)
    assert (counts["kept"], counts["dropped"]) == (len(rows), {})
    trained = run_module(
        f"hf_llm.{stage}",
        "tiny.yaml",
        "--name=judged",
        f"--{stage}.model=runs/tiny/sft",
        f"--{stage}.data=[{{path: judged/preferences.jsonl, license: mit}}]",
        f"--{stage}.evaluation_share=0.2",
        f"--{stage}.training.max_steps=1",
        f"--{stage}.training.logging_steps=1",
        folder=run,
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    history = json.loads((run / f"runs/judged/{stage}/trainer_state.json").read_text())["log_history"]
    assert any("loss" in entry for entry in history)


def test_answers_are_the_same_whoever_makes_them_and_however_often_it_is_interrupted(run, capsys):
    main([*MODELS, *SHORT, "--prepare", "--votes", "one.sqlite"])
    other = Votes(one := run / "one.sqlite")
    expected = [[other.answer(prompt, name) for name in other.models()] for prompt in range(len(other.prompts()))]
    assert len({text for texts in expected for text in texts}) > 12
    connection = sqlite3.connect(one)
    connection.execute("DELETE FROM answers")
    connection.commit()
    half = make_answers(other)
    next(half)
    half.close()
    with Background(Votes(one)) as background:
        background._thread.join()
    assert background.problem is None
    again = [[other.answer(prompt, name) for name in other.models()] for prompt in range(len(other.prompts()))]
    assert again == expected


def test_leaving_stops_the_model_in_the_middle_of_an_answer(run):
    (run / "p.txt").write_text("\n".join(f"Question {n}?" for n in range(400)))
    more = ("--max-new-tokens", "100", "--prompts", "p.txt", "--take", "400", "--votes", "v.sqlite")
    process = subprocess.Popen(
        [sys.executable, "-m", "hf_llm.judge", *MODELS, *more, "--port", "0"], stdout=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    votes = Votes(run / "v.sqlite")
    wait_for(lambda: votes.question("Ada"), "the first answers")
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    missing = votes.missing()
    assert missing
    assert all(len(prompts) % 8 == 0 for prompts in missing.values())  # whole batches only


def test_models_that_say_the_same_leave_nothing_to_judge(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answers_file(tmp_path, 2, gpt2="right")
    command = [sys.executable, "-m", "hf_llm.judge", "answers.jsonl", "--terminal", "--annotator", "Ada"]
    done = subprocess.run(command, input="", capture_output=True, text=True, check=True)
    assert "The answers to every prompt are the same" in done.stdout


def test_another_comparison_in_the_same_file_is_refused_by_what_differs(run, capsys):
    (run / "p.txt").write_text("One?\nTwo?\n")
    votes = ("--votes", "v.sqlite")
    main([*MODELS, *SHORT, "--prepare", *votes, "--prompts", "p.txt"])
    assert "every answer" in capsys.readouterr().out
    report = (*MODELS, *votes, "--report")
    assert "made with another sampling" in refused(capsys, *report, "--max-new-tokens", "13")
    assert "made with another sampling" in refused(capsys, *report, *SHORT, "--seed", "7")
    assert "base is not one of its models" in refused(capsys, "runs/tiny/base", "runs/tiny/sft", *votes, *SHORT)
    (run / "p.txt").write_text("One?\nThree?\n")
    assert "other prompts than p.txt" in refused(capsys, *report, *SHORT, "--prompts", "p.txt")
    assert "holds no votes yet" in refused(capsys, *report, *SHORT)


def test_a_model_that_cannot_answer_is_said_where_people_wait(run, capsys):
    (run / "p.txt").write_text("One?\n")
    (run / "hollow").mkdir()
    main_arguments = ("hollow", "runs/tiny/sft", "--prompts", "p.txt", "--votes", "v.sqlite")
    assert "hollow: no model to load" in refused(capsys, *main_arguments, "--terminal", "--annotator", "Ada")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name two models"),
        (("one.jsonl", "two.jsonl"), "one file holds the answers of all models"),
        (("nowhere.jsonl",), "nowhere.jsonl"),
        (("runs/x/sft", "runs/x/dpo"), "there is no folder runs/x/sft"),
        (("--votes", "nowhere.sqlite", "--report"), "there is no votes file nowhere.sqlite"),
        (("answers.jsonl", "--terminal"), "--annotator NAME"),
        (("answers.jsonl", "--annotator", " "), "--annotator: a name has"),
        (("answers.jsonl", "--take", "0"), "--take: 0"),
        (("answers.jsonl", "--export", "p.json"), "has to end in .jsonl"),
        (("answers.jsonl", "--export", "p.jsonl"), "holds no preference yet"),
        (("answers.jsonl", "--temperature", "-1", "--votes", "text.txt"), "no SQLite file"),
    ],
)
def test_wrong_commands_are_refused_with_the_remedy(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    answers_file(tmp_path)
    (tmp_path / "text.txt").write_text("no votes " * 100)
    assert words in refused(capsys, *arguments)


def test_a_report_never_takes_the_place_of_the_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = answers_file(tmp_path).rename("answers.json")
    path.write_text(json.dumps([json.loads(line) for line in path.read_text().splitlines()]))
    before = path.read_text()
    subprocess.run(
        [sys.executable, "-m", "hf_llm.judge", "answers.json", "--terminal", "--annotator", "Ada"],
        input="aabtxs5a", text=True, check=True, capture_output=True,
    )  # fmt: skip
    main(["answers.json", "--report"])
    assert path.read_text() == before
    found = json.loads((tmp_path / "answers-report.json").read_text())
    assert found["votes"] == 7
    assert found["annotators"]["Ada"]["choices"] == {"a": 3, "b": 1, "tie": 1, "bad": 1, "skip": 1}


class Checker(HTMLParser):
    """Every tag closed, and nothing loaded from elsewhere."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attributes):
        assert not {"src", "href"} & {name for name, _ in attributes}
        if tag not in ("meta", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_report_holds_what_was_judged_and_loads_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    answers_file(tmp_path, 30, **{"<b>third</b>": "other"})
    with pytest.raises(SystemExit):
        main(["answers.jsonl", "--report"])
    votes = Votes(tmp_path / "answers.sqlite")
    for annotator in ("Ada", "Ben", "Cy & Co"):
        while question := votes.question(annotator):
            sides = {question.a.split()[0]: "a", question.b.split()[0]: "b"}
            votes.vote(question.pair, annotator, sides.get("right") or sides["other"], 5, 3, 2.0)
    main(["answers.jsonl", "--report"])
    page = (tmp_path / "answers-report.html").read_text()
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert "&lt;b&gt;third" in page and "<b>third" not in page
    assert "Cy &amp; Co" in page
    assert "ours is rated highest of 3 models" in page
    found = json.loads((tmp_path / "answers-report.json").read_text())
    assert list(found["ratings"]) == ["ours", "<b>third</b>", "gpt2"]
    assert [sum(match["votes"].values()) for match in found["win_rates"]] == [30, 30, 30]
    assert found["agreement"]["all"]["kappa"] == 1.0
    assert len(found["agreement"]["pairwise"]) == 3


def test_the_export_follows_the_majority_and_leaves_out_what_teaches_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    answers_file(tmp_path, 6)
    rows = rows_of("answers.jsonl")
    rows[5]["gpt2"] = "  "
    Path("answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit):
        main(["answers.jsonl", "--report"])
    votes = Votes(tmp_path / "answers.sqlite")
    wanted = {0: "rrw", 1: "rw", 2: "ttr", 3: "xx", 4: "ss", 5: "r"}
    for place, annotator in enumerate(("Ada", "Ben", "Cy")):
        while question := votes.question(annotator):
            number = int(question.messages[0]["content"].split()[1].rstrip("?"))
            said = wanted[number][place : place + 1] or "s"
            good = "a" if question.a.startswith("right") else "b"
            choices = {"r": good, "w": "ab".replace(good, ""), "t": "tie", "x": "bad", "s": "skip"}
            votes.vote(question.pair, annotator, choices[said])
    main(["answers.jsonl", "--export", "p.jsonl"])
    [row] = rows_of("p.jsonl")
    assert row == {
        "prompt": [{"role": "user", "content": "Question 0?"}],
        "chosen": [{"role": "assistant", "content": "right 0"}],
        "rejected": [{"role": "assistant", "content": "wrong 0"}],
    }
    said = capsys.readouterr().out
    for reason in ("1 annotators disagree", "1 tie", "1 both bad", "1 only skipped", "1 an empty answer"):
        assert reason in said


def test_the_page_is_served_until_it_is_killed_and_goes_on_afterwards(tmp_path):
    answers_file(tmp_path)
    command = [sys.executable, "-m", "hf_llm.judge", "answers.jsonl", "--port", "0", "--annotator", "Ada"]
    for done in range(2):
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
        url = process.stdout.readline().strip()
        page = urllib.request.urlopen(url).read().decode()
        token = page.split('judging-token" content="')[1].split('"')[0]
        vote = {"annotator": "Ada", "pair": done, "choice": "a", "score_a": None, "score_b": None, "seconds": 1}
        headers = {"Content-Type": "application/json", "X-Judging-Token": token}
        request = urllib.request.Request(f"{url}api/vote", json.dumps(vote).encode(), headers)
        state = json.loads(urllib.request.urlopen(request).read())
        assert (state["recorded"], state["done"]) == (True, done + 1)
        os.kill(process.pid, (signal.SIGKILL, signal.SIGINT)[done])
        assert process.wait(20) == (-signal.SIGKILL, 0)[done]
    assert len(Votes(tmp_path / "answers.sqlite").standing()) == 2


def test_votes_lie_beside_the_run(tmp_path):
    assert usual_place(["runs/x/sft", "runs/x/dpo"]) == Path("runs/x/judging/sft-dpo.sqlite")
    assert usual_place(["runs/x/sft", "runs/y/sft"]) == Path("sft-sft.sqlite")
    assert usual_place(["data/answers.jsonl"]) == Path("answers.sqlite")
    assert usual_place(["gpt2", "owner/model"]) == Path("gpt2-model.sqlite")


@pytest.mark.skipif(not DATA, reason="HF_LLM_DATA names no folder of real data")
def test_prompts_come_from_real_instruction_data(run, capsys):
    from hf_llm.human_eval.comparison_plan import prompts_of_file

    prompts = prompts_of_file(Path(DATA) / "alpaca/alpaca_5k.json", 50)
    assert len(prompts) == 50
    assert all(prompt[-1]["role"] == "user" and prompt[-1]["content"] for prompt in prompts)

"""The arena as a person runs it: from two models of a run to votes, a report and a model trained on them."""

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

from hf_llm.arena import default_database_path, main
from hf_llm.data.chat.loaders import ConversationSource, load_preferences
from hf_llm.human_eval.answers import BackgroundGeneration, generate_missing_answers
from hf_llm.human_eval.votes import VoteDatabase
from tests.human_eval.chromium import wait_until
from tests.processes import SECONDS, started
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


def read_refusal(capsys, *arguments: str) -> str:
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


def read_rows(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def vote_by_length(database: VoteDatabase, annotator: str) -> None:
    while question := database.next_question(annotator):
        database.record_vote(question.pair, annotator, "a" if len(question.a) >= len(question.b) else "b", 4, 2, 1.0)


@pytest.mark.parametrize("stage", ["dpo", pytest.param("reward", marks=pytest.mark.slow)])
def test_from_two_models_to_a_model_trained_on_the_votes(run, capsys, stage):
    main([*MODELS, *SHORT, "--prepare"])
    assert "every answer is there" in capsys.readouterr().out
    database = VoteDatabase(run / "runs/tiny/judging/sft-dpo.sqlite")
    assert database.find_missing_answers() == {}
    made = database.read_models()
    for name in ("sft", "dpo"):
        manifest = json.loads((run / f"runs/tiny/{name}/manifest.json").read_text())
        assert made[name]["digest"] == manifest["digest"]
        assert made[name]["sampling"]["max_new_tokens"] == 12
    for annotator in ("Ada", "Ben"):
        vote_by_length(database, annotator)
    main([*MODELS, *SHORT, "--report", "--export", "voted/preferences.jsonl"])
    output = capsys.readouterr().out
    assert "rating" in output and "preferences" in output

    rows = read_rows("voted/preferences.jsonl")
    progress = database.count_progress("Ada")
    assert len(rows) == progress["done"] > 6
    assert all(len(row["chosen"][0]["content"]) >= len(row["rejected"][0]["content"]) - 2 for row in rows)
    source = ConversationSource(license="mit", path="voted/preferences.jsonl")
    *_, counts = load_preferences([source], 0.2, 1)
    assert (counts["kept"], counts["dropped"]) == (len(rows), {})
    trained = run_module(
        f"hf_llm.{stage}",
        "tiny.yaml",
        "--name=voted",
        f"--{stage}.model=runs/tiny/sft",
        f"--{stage}.data=[{{path: voted/preferences.jsonl, license: mit}}]",
        f"--{stage}.evaluation_share=0.2",
        f"--{stage}.training.max_steps=1",
        f"--{stage}.training.logging_steps=1",
        folder=run,
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    history = json.loads((run / f"runs/voted/{stage}/trainer_state.json").read_text())["log_history"]
    assert any("loss" in entry for entry in history)


def test_answers_do_not_depend_on_the_process_or_on_interruptions(run, capsys):
    main([*MODELS, *SHORT, "--prepare", "--votes", "one.sqlite"])
    other = VoteDatabase(one := run / "one.sqlite")
    expected = [
        [other.read_answer(prompt, name) for name in other.read_models()] for prompt in range(len(other.read_prompts()))
    ]
    assert len({text for texts in expected for text in texts}) > 12
    connection = sqlite3.connect(one)
    connection.execute("DELETE FROM answers")
    connection.commit()
    half = generate_missing_answers(other)
    next(half)
    half.close()
    with BackgroundGeneration(VoteDatabase(one)) as background:
        background._thread.join(60)
    assert background.problem is None
    again = [
        [other.read_answer(prompt, name) for name in other.read_models()] for prompt in range(len(other.read_prompts()))
    ]
    assert again == expected


def test_ctrl_c_stops_the_model_in_the_middle_of_an_answer(run):
    (run / "p.txt").write_text("\n".join(f"Question {n}?" for n in range(400)))
    more = ("--max-new-tokens", "100", "--prompts", "p.txt", "--take", "400", "--votes", "v.sqlite")
    command = [sys.executable, "-m", "hf_llm.arena", *MODELS, *more, "--port", "0"]
    with started(command, stdout=subprocess.PIPE, text=True) as process:
        process.stdout.readline()
        database = VoteDatabase(run / "v.sqlite")
        wait_until(lambda: database.next_question("Ada"), "the first answers")
        process.send_signal(signal.SIGINT)
        assert process.wait(SECONDS) == 0
    missing = database.find_missing_answers()
    assert missing
    assert all(len(prompts) % 8 == 0 for prompts in missing.values())  # whole batches only


def test_models_with_equal_answers_leave_nothing_to_vote_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answers_file(tmp_path, 2, gpt2="right")
    command = [sys.executable, "-m", "hf_llm.arena", "answers.jsonl", "--terminal", "--annotator", "Ada"]
    done = subprocess.run(command, input="", capture_output=True, text=True, check=True)
    assert "The answers to every prompt are the same" in done.stdout


def test_another_comparison_in_the_same_file_is_refused_by_what_differs(run, capsys):
    (run / "p.txt").write_text("One?\nTwo?\n")
    votes = ("--votes", "v.sqlite")
    main([*MODELS, *SHORT, "--prepare", *votes, "--prompts", "p.txt"])
    assert "every answer" in capsys.readouterr().out
    report = (*MODELS, *votes, "--report")
    assert "written with another sampling" in read_refusal(capsys, *report, "--max-new-tokens", "13")
    assert "written with another sampling" in read_refusal(capsys, *report, *SHORT, "--seed", "7")
    assert "base is not one of its models" in read_refusal(capsys, "runs/tiny/base", "runs/tiny/sft", *votes, *SHORT)
    (run / "p.txt").write_text("One?\nThree?\n")
    assert "other prompts than p.txt" in read_refusal(capsys, *report, *SHORT, "--prompts", "p.txt")
    assert "holds no votes yet" in read_refusal(capsys, *report, *SHORT)


def test_a_model_that_cannot_be_loaded_is_reported_where_people_wait(run, capsys):
    (run / "p.txt").write_text("One?\n")
    (run / "hollow").mkdir()
    main_arguments = ("hollow", "runs/tiny/sft", "--prompts", "p.txt", "--votes", "v.sqlite")
    assert "hollow: no model to load" in read_refusal(capsys, *main_arguments, "--terminal", "--annotator", "Ada")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name two models"),
        (("one.jsonl", "two.jsonl"), "one file holds the answers of all models"),
        (("nowhere.jsonl",), "nowhere.jsonl"),
        (("runs/x/sft", "runs/x/dpo"), "there is no folder runs/x/sft"),
        (("--votes", "nowhere.sqlite", "--report"), "there is no file of votes nowhere.sqlite"),
        (("answers.jsonl", "--terminal"), "--annotator NAME"),
        (("answers.jsonl", "--annotator", " "), "--annotator: a name has"),
        (("answers.jsonl", "--take", "0"), "--take: 0"),
        (("answers.jsonl", "--export", "p.json"), "has to end in .jsonl"),
        (("answers.jsonl", "--export", "p.jsonl"), "holds no preference yet"),
        (("answers.jsonl", "--temperature", "-1", "--votes", "text.txt"), "not a SQLite file"),
    ],
)
def test_wrong_commands_are_refused_with_the_remedy(tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    answers_file(tmp_path)
    (tmp_path / "text.txt").write_text("no votes " * 100)
    assert words in read_refusal(capsys, *arguments)


def test_a_report_never_overwrites_the_answers(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = answers_file(tmp_path).rename("answers.json")
    path.write_text(json.dumps([json.loads(line) for line in path.read_text().splitlines()]))
    before = path.read_text()
    subprocess.run(
        [sys.executable, "-m", "hf_llm.arena", "answers.json", "--terminal", "--annotator", "Ada"],
        input="aabtxs5a", text=True, check=True, capture_output=True,
    )  # fmt: skip
    main(["answers.json", "--report"])
    assert path.read_text() == before
    results = json.loads((tmp_path / "answers-report.json").read_text())
    assert results["votes"] == 7
    assert results["annotators"]["Ada"]["choices"] == {"a": 3, "b": 1, "tie": 1, "bad": 1, "skip": 1}


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


def test_the_report_holds_the_results_and_loads_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    answers_file(tmp_path, 30, **{"<b>third</b>": "other"})
    with pytest.raises(SystemExit):
        main(["answers.jsonl", "--report"])
    database = VoteDatabase(tmp_path / "answers.sqlite")
    for annotator in ("Ada", "Ben", "Cy & Co"):
        while question := database.next_question(annotator):
            sides = {question.a.split()[0]: "a", question.b.split()[0]: "b"}
            database.record_vote(question.pair, annotator, sides.get("right") or sides["other"], 5, 3, 2.0)
    main(["answers.jsonl", "--report"])
    page = (tmp_path / "answers-report.html").read_text()
    checker = Checker()
    checker.feed(page)
    assert checker.open == []
    assert "&lt;b&gt;third" in page and "<b>third" not in page
    assert "Cy &amp; Co" in page
    assert "ours is rated highest of 3 models" in page
    results = json.loads((tmp_path / "answers-report.json").read_text())
    assert list(results["ratings"]) == ["ours", "<b>third</b>", "gpt2"]
    assert [sum(match["votes"].values()) for match in results["win_rates"]] == [30, 30, 30]
    assert results["agreement"]["all"]["kappa"] == 1.0
    assert len(results["agreement"]["pairwise"]) == 3


def test_the_export_follows_the_majority_and_drops_pairs_without_one(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    answers_file(tmp_path, 6)
    rows = read_rows("answers.jsonl")
    rows[5]["gpt2"] = "  "
    Path("answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SystemExit):
        main(["answers.jsonl", "--report"])
    database = VoteDatabase(tmp_path / "answers.sqlite")
    keys_by_question = {0: "rrw", 1: "rw", 2: "ttr", 3: "xx", 4: "ss", 5: "r"}
    for index, annotator in enumerate(("Ada", "Ben", "Cy")):
        while question := database.next_question(annotator):
            number = int(question.messages[0]["content"].split()[1].rstrip("?"))
            key = keys_by_question[number][index : index + 1] or "s"
            good = "a" if question.a.startswith("right") else "b"
            choices = {"r": good, "w": "ab".replace(good, ""), "t": "tie", "x": "bad", "s": "skip"}
            database.record_vote(question.pair, annotator, choices[key])
    main(["answers.jsonl", "--export", "p.jsonl"])
    [row] = read_rows("p.jsonl")
    assert row == {
        "prompt": [{"role": "user", "content": "Question 0?"}],
        "chosen": [{"role": "assistant", "content": "right 0"}],
        "rejected": [{"role": "assistant", "content": "wrong 0"}],
    }
    output = capsys.readouterr().out
    for reason in ("1 annotators disagree", "1 tie", "1 both bad", "1 only skipped", "1 an empty answer"):
        assert reason in output


def test_the_page_is_served_until_it_is_killed_and_resumes_afterwards(tmp_path):
    answers_file(tmp_path)
    command = [sys.executable, "-m", "hf_llm.arena", "answers.jsonl", "--port", "0", "--annotator", "Ada"]
    for done in range(2):
        with started(command, ignores_interrupts=True, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
            url = process.stdout.readline().strip()
            page = urllib.request.urlopen(url).read().decode()
            token = page.split('arena-token" content="')[1].split('"')[0]
            vote = {"annotator": "Ada", "pair": done, "choice": "a", "score_a": None, "score_b": None, "seconds": 1}
            headers = {"Content-Type": "application/json", "X-Judging-Token": token}
            request = urllib.request.Request(f"{url}api/vote", json.dumps(vote).encode(), headers)
            state = json.loads(urllib.request.urlopen(request).read())
            assert (state["recorded"], state["done"]) == (True, done + 1)
            os.kill(process.pid, (signal.SIGKILL, signal.SIGINT)[done])
            assert process.wait(SECONDS) == (-signal.SIGKILL, 0)[done]
    assert len(VoteDatabase(tmp_path / "answers.sqlite").read_votes()) == 2


def test_votes_are_kept_beside_the_run(tmp_path):
    assert default_database_path(["runs/x/sft", "runs/x/dpo"]) == Path("runs/x/judging/sft-dpo.sqlite")
    assert default_database_path(["runs/x/sft", "runs/y/sft"]) == Path("sft-sft.sqlite")
    assert default_database_path(["data/answers.jsonl"]) == Path("answers.sqlite")
    assert default_database_path(["gpt2", "owner/model"]) == Path("gpt2-model.sqlite")


@pytest.mark.skipif(not DATA, reason="HF_LLM_DATA names no folder of real data")
def test_prompts_come_from_real_instruction_data(run, capsys):
    from hf_llm.human_eval.comparison_plan import read_prompts_file

    prompts = read_prompts_file(Path(DATA) / "alpaca/alpaca_5k.json", 50)
    assert len(prompts) == 50
    assert all(prompt[-1]["role"] == "user" and prompt[-1]["content"] for prompt in prompts)

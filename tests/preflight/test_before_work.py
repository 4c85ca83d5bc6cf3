"""When the check of a recipe runs, in which process, and what it leaves behind."""

import os
import subprocess
import sys

import pytest

from hf_llm.core.errors import UserError
from hf_llm.pipeline.run import Run
from hf_llm.preflight import before_work
from hf_llm.preflight.before_work import CHECKED, SKIP, check_before_work, check_in_child
from hf_llm.preflight.findings import Findings
from tests.tiny_recipe import run_module, write_inputs


@pytest.fixture
def folder(tmp_path, monkeypatch):
    write_inputs(tmp_path, documents=8)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(SKIP, raising=False)
    monkeypatch.delenv(CHECKED, raising=False)
    return tmp_path


@pytest.fixture
def checks(monkeypatch):
    """The recipes that are checked, each of which is found to be sound."""
    checked = []
    monkeypatch.setattr(before_work, "check_in_child", lambda run, with_time: checked.append(run.name) or Findings())
    return checked


def test_a_stage_tells_the_mistakes_of_all_sections_before_it_makes_anything(folder, capsys):
    arguments = [
        "--dpo.training.loss_type=[ipoo]",
        "--evaluate.tokens=-1",
        "--sft.data=[{path: chat.jsonl, license: mit}]",
    ]
    from hf_llm import prepare_data

    with pytest.raises(SystemExit) as stopped:
        prepare_data.main(["tiny.yaml", *arguments])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert "tiny.yaml: 3 problems" in error
    for key in ("dpo: training.loss_type", "evaluate.tokens", "sft.data[0]"):
        assert key in error
    assert not (folder / "runs").exists()


def test_a_process_that_a_checked_one_has_started_checks_nothing(folder, checks):
    check_before_work(Run(["tiny.yaml"]))
    check_before_work(Run(["tiny.yaml"]), "corpus")
    assert checks == ["tiny"]
    check_before_work(Run(["tiny.yaml", "--seed=3"]), "corpus")  # another recipe
    assert checks == ["tiny", "tiny"]


def test_it_is_checked_again_once_there_is_a_tokenizer(folder, checks, monkeypatch):
    check_before_work(Run(["tiny.yaml"]))
    monkeypatch.setattr(before_work, "has_tokenizer", lambda run: True)
    check_before_work(Run(["tiny.yaml"]))
    assert checks == ["tiny", "tiny"]


def test_what_was_begun_is_resumed_unchecked(folder, checks):
    (folder / "runs/tiny/base").mkdir(parents=True)
    check_before_work(Run(["tiny.yaml"]), "base")
    assert checks == []


@pytest.mark.parametrize(("name", "value"), [("RANK", "1"), (SKIP, "1")])
def test_other_processes_of_a_launch_and_who_asks_for_it_check_nothing(folder, checks, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    check_before_work(Run(["tiny.yaml"]), "base")
    assert checks == []


def test_the_check_leaves_nothing_in_this_process(folder):
    before = dict(os.environ)
    findings = check_in_child(Run(["tiny.yaml", "--seed=-1"]))
    assert any(problem.startswith("seed") for problem in findings.problems)
    assert dict(os.environ) == before
    assert not (folder / "runs").exists()


def test_a_process_that_has_computed_with_threads_can_still_check(folder):
    """As a notebook has that trained before. A fork has none of the threads of tokenizers and torch, and would wait."""
    code = f"""
import os
os.environ["TOKENIZERS_PARALLELISM"] = "true"
import torch
from tokenizers import Tokenizer, models, trainers
from hf_llm.pipeline.run import Run
from hf_llm.preflight.before_work import check_in_child
Tokenizer(models.BPE()).train_from_iterator(["a b c d"] * 5000, trainers.BpeTrainer(vocab_size=300))
torch.set_num_threads(4)
weights = torch.randn(512, 512, requires_grad=True)
(torch.randn(512, 512) @ weights).softmax(-1).log().sum().backward()
os.chdir({str(folder)!r})
print(len(check_in_child(Run(["tiny.yaml"])).problems), "problems")
"""
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "0 problems", done.stderr


def test_a_check_that_fails_shows_what_it_has_printed(folder, monkeypatch):
    def fail(*_):
        print("what it was doing")
        raise ZeroDivisionError("our fault")

    monkeypatch.setattr("hf_llm.preflight.check_run.check_run", fail)
    with pytest.raises(RuntimeError, match=r"what it was doing(.|\n)*ZeroDivisionError: our fault"):
        check_in_child(Run(["tiny.yaml"]))


def test_the_command_says_what_is_sound_and_what_is_not(folder):
    done = run_module("hf_llm.check", "tiny.yaml", folder=folder)
    assert done.returncode == 0, done.stderr
    assert (
        "tiny.yaml: nothing to correct for corpus, tokenizer, tokens, base, sft, dpo, evaluation, report" in done.stdout
    )

    done = run_module("hf_llm.check", "tiny.yaml", "--sft.lora.target_modules=[qproj]", folder=folder)
    assert done.returncode == 2
    assert "error: tiny.yaml: 1 problem\n  sft.lora" in done.stderr
    assert not (folder / "runs").exists()


def test_a_problem_is_named_by_its_key_once():
    findings = Findings()

    def refuse(message):
        raise UserError(message)

    for message in ("sft.lora.r: 0 is too few", "the rank is 0", "the rank is 0"):
        assert findings.attempt("sft.lora", refuse, message) is None
    assert findings.problems == ["sft.lora.r: 0 is too few", "sft.lora: the rank is 0"]
    assert findings.has_problem("sft") and findings.has_problem("sft.lora") and not findings.has_problem("dpo")

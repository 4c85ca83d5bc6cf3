"""Data sets, models and rights on the Hub: what is told before a run, with a Hub that answers, refuses or is silent."""

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import LocalTokenNotFoundError

from hf_llm.preflight import hub_checks
from hf_llm.preflight.findings import Findings
from hf_llm.preflight.hub_checks import check_push_right, check_repository


class Hub:
    """Answers as `answers` says: raises an exception, or returns a value."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self):
        return self

    def whoami(self):
        return self.reply()

    def repo_info(self, name, repo_type, timeout):
        return self.reply()

    def reply(self):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


@pytest.fixture
def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def answer(value):
        monkeypatch.setattr(hub_checks, "HfApi", Hub(value))
        return Findings()

    return answer


def test_what_the_hub_has_is_no_problem(online):
    findings = online(object())
    check_repository("corpus.sources[0].hub", "owner/texts", "dataset", findings)
    assert findings == Findings()


def test_a_hub_that_does_not_answer_is_a_note(online):
    findings = online(OSError("no route to host"))
    check_repository("corpus.sources[0].hub", "owner/texts", "dataset", findings)
    check_push_right("pretrain.training.push_to_hub", findings)
    assert findings.problems == []
    assert len(findings.notes) == 2
    assert all("no route to host" in note for note in findings.notes)


def test_nobody_logged_in_and_a_token_that_may_only_read_are_problems(online):
    findings = online(LocalTokenNotFoundError("no token"))
    check_push_right("pretrain.training.push_to_hub", findings)
    assert "hf auth login" in findings.problems[0]

    findings = online({"auth": {"accessToken": {"role": "read"}}})
    check_push_right("pretrain.training.push_to_hub", findings)
    assert "may only read" in findings.problems[0]

    findings = online({"auth": {"accessToken": {"role": "write"}}})
    check_push_right("pretrain.training.push_to_hub", findings)
    assert findings == Findings()


def test_what_is_cached_needs_no_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    findings = Findings()
    check_repository("sft.model", "owner/model", "model", findings)
    assert "HF_HUB_OFFLINE is set" in findings.problems[0]

    snapshot = tmp_path / "models--owner--model/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}", encoding="utf-8")
    findings = Findings()
    check_repository("sft.model", "owner/model", "model", findings)
    assert findings == Findings()

"""A Hub that is down or does not answer, in place of huggingface.co on loopback."""

import json
from concurrent.futures import Future
from functools import partial

import huggingface_hub
import pytest
from huggingface_hub import constants
from transformers import TrainingArguments
from transformers.utils import PushInProgress

from hf_llm.core.errors import UserError
from hf_llm.training import hub_upload
from hf_llm.training.hub_upload import create_repository, upload_model_folder, wait_for_uploads
from tests.stand_in_hub import running_hub
from tests.training.fault_tolerance.faults import run, start, tiny_trainer

TOKEN = "hf_" + "x" * 34


@pytest.fixture
def hub(monkeypatch):
    """A Hub that huggingface_hub talks to, without long waits."""
    with running_hub() as hub:
        to_hub(hub.url, monkeypatch.setattr)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(hub_upload, "RETRY_PAUSES_SECONDS", (0, 0))
        monkeypatch.setattr(hub_upload, "SILENCE_SECONDS", 2.0)
        yield hub
        huggingface_hub.close_session()


def to_hub(url, set_attribute=setattr):
    set_attribute(constants, "ENDPOINT", url)
    set_attribute(constants, "HF_HUB_OFFLINE", False)
    set_attribute(constants, "HF_HUB_DISABLE_XET", True)


def finished_model(folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


def test_a_hub_that_is_out_of_order_for_a_while_is_tried_again(hub, tmp_path, capsys):
    hub.repositories["ada/tiny"] = {}
    hub.next_commits = [503, 500]
    upload_model_folder("ada/tiny", finished_model(tmp_path / "base"))
    assert "config.json" in hub.repositories["ada/tiny"]
    assert capsys.readouterr().out.count("the Hub does not answer") == 2


def test_one_that_stays_so_is_an_error_with_the_command_for_later(hub, tmp_path):
    hub.repositories["ada/tiny"] = {}
    hub.next_commits = [503] * 9
    with pytest.raises(UserError, match=r"(?s)the model is finished in .*hf upload ada/tiny"):
        upload_model_folder("ada/tiny", finished_model(tmp_path / "base"))
    assert len(hub.next_commits) == 6  # three tries


def test_one_that_never_answers_is_not_waited_for_without_end(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(hub_upload, "RETRY_PAUSES_SECONDS", ())
    hub.repositories["ada/tiny"] = {}
    hub.silent.set()
    try:
        with pytest.raises(UserError, match="its upload to ada/tiny failed"):
            upload_model_folder("ada/tiny", finished_model(tmp_path / "base"))
        assert hub.unanswered == 1
    finally:
        hub.silent.clear()


def test_a_refusal_is_told_at_once(hub, tmp_path, capsys):
    hub.fail = True
    with pytest.raises(UserError, match="cannot be pushed to"):
        create_repository(TrainingArguments(str(tmp_path), hub_model_id="ada/tiny", use_cpu=True), "pretrain")
    assert "trying again" not in capsys.readouterr().out


def pushing_trainer(folder, url, silence, **changes):
    """A tiny trainer that pushes every checkpoint to the Hub at `url`, and says when the training has ended."""
    to_hub(url)
    hub_upload.SILENCE_SECONDS = silence
    huggingface_hub.set_client_factory(hub_upload.create_http_client)
    return tiny_trainer(folder, push_to_hub=True, hub_model_id="ada/tiny", **changes)


def build(hub, silence):
    return partial(pushing_trainer, url=hub.url, silence=silence)


def test_a_training_goes_on_exactly_while_every_push_of_a_checkpoint_fails(undisturbed, hub, tmp_path):
    hub.next_commits = [500] * 99
    ended = run(tmp_path / "base", build=build(hub, 20), variables={"HF_TOKEN": TOKEN})
    assert ended.code == 0, ended.output
    assert len(hub.next_commits) < 99
    assert ended.outcome["weights"] == undisturbed.ended.outcome["weights"]


def test_a_training_ends_and_is_saved_while_the_hub_keeps_a_push_waiting(undisturbed, hub, tmp_path):
    hub.silent.set()
    started = start(tmp_path / "base", build=build(hub, 3600), variables={"HF_TOKEN": TOKEN})
    try:
        started.wait_for_file(started.outcome)  # written after the training
        assert hub.unanswered == 1
        assert started.processes[0].is_alive()  # for its upload, which has not ended
        assert json.loads((tmp_path / "base" / "run_status.json").read_text())["status"] == "finished"
    finally:
        hub.silent.clear()
    ended = started.end()
    assert ended.outcome["weights"] == undisturbed.ended.outcome["weights"]


def test_a_push_of_a_checkpoint_that_failed_is_told_in_the_end(tmp_path, capsys):
    trainer = tiny_trainer(tmp_path)
    trainer.push_in_progress = None
    wait_for_uploads(trainer)
    failed = Future()
    failed.set_exception(OSError("no route to host"))
    trainer.push_in_progress = PushInProgress([failed])
    wait_for_uploads(trainer)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "upload" in line]
    assert line == "the upload of a checkpoint failed, which harms nothing: no route to host"

"""Where the logs go: TensorBoard by default, wandb offline without a login, and no secrets in either."""

import os
import time

import pytest
import wandb
from transformers import TrainerCallback

from hf_llm.monitoring.attach import attach_callbacks
from hf_llm.monitoring.callbacks.alerts import Alert, AlertCallback
from hf_llm.monitoring.callbacks.integrations import choose_reporters, is_wandb_login_known
from hf_llm.monitoring.callbacks.samples import SamplesSection
from tests.monitoring.tiny_training import Rows
from tests.training.fault_tolerance.faults import run

SECRET = "hf_" + "Sx7" * 11


@pytest.fixture
def no_login(monkeypatch, tmp_path):
    """A user who has never logged in to wandb, and whom no program may ask to."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.setenv(name, "")  # so that whatever the code sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_tensorboard_is_the_default_and_the_recipe_decides():
    assert choose_reporters(None) == ["tensorboard"]
    assert choose_reporters("none") == ["none"]
    assert choose_reporters(["tensorboard"]) == ["tensorboard"]


def test_wandb_without_a_login_runs_offline_with_a_message(no_login, capsys):
    assert choose_reporters(["tensorboard", "wandb"]) == ["tensorboard", "wandb"]
    assert os.environ["WANDB_MODE"] == "offline"
    assert "offline" in capsys.readouterr().out


def test_wandb_without_a_login_never_asks_even_if_online_is_requested(no_login, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    choose_reporters("wandb")
    assert os.environ["WANDB_MODE"] == "offline"


@pytest.mark.parametrize("how", ["key", "netrc"])
def test_wandb_with_a_login_is_left_unchanged(no_login, monkeypatch, capsys, how):
    if how == "key":
        monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    else:
        no_login.write_text(f"machine api.wandb.ai login user password {'x' * 40}\n")
        no_login.chmod(0o600)
    choose_reporters("wandb")
    assert "WANDB_MODE" not in os.environ
    assert capsys.readouterr().out == ""


def test_neither_another_servers_login_nor_a_broken_netrc_is_a_login(no_login, capsys):
    no_login.write_text("machine github.com login user password x\n")
    no_login.chmod(0o600)
    assert not is_wandb_login_known()
    no_login.write_text("this is no netrc\n")
    assert not is_wandb_login_known()
    assert "cannot parse" in capsys.readouterr().out


class SpikeAtEnd(TrainerCallback):
    """A loss spike in the last step."""

    def __init__(self, trainer):
        self.trainer = trainer

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            alerts = next(c for c in self.trainer.callback_handler.callbacks if isinstance(c, AlertCallback))
            alerts._report_alert(args, Alert(state.global_step, "loss_spike", "loss spike: 9.9"))


def test_an_offline_wandb_run_is_written_beside_the_model_and_holds_no_secret(
    no_login, make_trainer, monkeypatch, tmp_path
):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.chdir(tmp_path)
    rows = Rows([8] * 4, 8)
    trainer = make_trainer(
        rows, rows, max_steps=2, report_to=choose_reporters("wandb"), hub_token=SECRET, run_name="tiny"
    )
    attach_callbacks(trainer, samples=SamplesSection([]))
    trainer.add_callback(SpikeAtEnd(trainer))
    trainer.train()
    wandb.finish()
    written = list((tmp_path / "out" / "logs").rglob("run-*.wandb"))
    assert len(written) == 1
    content = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"tokens_per_second" in content
    assert b"per_device_train_batch_size" in content
    assert b"loss spike: 9.9" in content
    assert SECRET.encode() not in content
    assert not (tmp_path / "wandb").exists()


def test_a_trackio_run_is_kept_on_this_machine(make_trainer, monkeypatch, tmp_path):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    trackio = pytest.importorskip("trackio")
    trainer = make_trainer(
        Rows([8] * 4, 8), max_steps=2, report_to=choose_reporters("trackio"), run_name="tiny", project="p"
    )
    attach_callbacks(trainer)
    trainer.train()
    run = trackio.Api().runs("p")[0]
    assert run.name == "tiny"
    content = b"".join(path.read_bytes() for path in (tmp_path / "trackio").rglob("*") if path.is_file())
    assert b"tokens_per_second" in content


def test_a_resumed_training_continues_its_wandb_run_and_another_training_has_its_own(tmp_path):
    """Offline, for real: both starts of a training leave files of one and the same run."""

    def train(folder, steps, **variables):
        folder.mkdir(exist_ok=True)
        environment = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_DIR": str(folder), **variables}
        ended = run(folder, max_steps=steps, report_to=["wandb"], lr_scheduler_type="constant", variables=environment)
        assert ended.code == 0, ended.output
        runs = list((folder / "wandb").glob("offline-run-*"))
        (run_id,) = {path.name.rpartition("-")[2] for path in runs}
        return run_id, len(runs)

    first, count = train(tmp_path / "a", 4)
    assert count == 1
    time.sleep(1)  # wandb names its folders by the second
    assert train(tmp_path / "a", 8) == (first, 2)
    assert train(tmp_path / "b", 4)[0] != first
    assert train(tmp_path / "c", 4, WANDB_RUN_ID="chosen")[0] == "chosen"

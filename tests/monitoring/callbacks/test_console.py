"""One line for each log entry: in a file, on a terminal, and which metrics it has in each stage."""

import os
import re
import sys
import threading

import pytest

from hf_llm.core.console import CLEAR_LINE
from hf_llm.monitoring.attach import attach_callbacks
from hf_llm.monitoring.callbacks import console
from hf_llm.monitoring.callbacks.console_format import cut_words, format_evaluation, format_progress
from tests.monitoring.tiny_training import Rows

needs_terminal = pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a Unix terminal")
PRETRAINING = {
    "loss": 3.4123, "grad_norm": 0.8412, "learning_rate": 5.9e-4, "tokens_per_second": 41_234.0, "mfu": 0.42,
    "memory_gib": 12.31, "eta_seconds": 11_520, "cost": 1.934, "perplexity": 30.3,
}  # fmt: skip


def test_format_progress_of_pretraining():
    evaluation = {"eval_loss": 3.501, "eval_bits_per_byte": 0.9712}
    assert format_progress(1200, 19073, PRETRAINING, evaluation) == (
        "step 1,200/19,073  6%  ETA 3 h 12 min  loss 3.412  val 3.501  0.971 bits/byte  lr 5.9e-4  |g| 0.841  "
        "41.2k tok/s  MFU 42%  12.3 GiB  $1.93"
    )


@pytest.mark.parametrize(
    ("width", "shown"),
    [(200, "step 1/2  50%  ETA 1 min  loss 3.412"), (36, "step 1/2  50%  ETA 1 min  loss 3.412"),
     (35, "step 1/2  50%  ETA 1 min"), (9, "step 1/2"), (4, "step")],
)  # fmt: skip
def test_a_narrow_terminal_shows_whole_values(width, shown):
    assert cut_words("step 1/2  50%  ETA 1 min  loss 3.412", width) == shown


@pytest.mark.parametrize(
    ("logged", "words"),
    [
        ({"loss": 1.2, "mean_token_accuracy": 0.643, "entropy": 1.1}, "loss 1.200  token accuracy 64%"),
        ({"loss": 0.61, "accuracy": 0.7, "margin": 0.312, "min_reward": -1.0},
         "loss 0.610  preference accuracy 70%  margin 0.312"),
        ({"loss": 0.69, "rewards/accuracies": 0.5, "rewards/margins": 0.0004},
         "loss 0.690  preference accuracy 50%  margin 0.0004"),
        ({"loss": 0.0, "reward": 0.42, "kl": 0.0123, "completions/mean_length": 33.2, "reward_std": 0.3},
         "loss 0.000  reward 0.420  KL 0.0123  length 33"),
        ({"loss": -0.02, "reward": 1.3, "kl": 2.5, "length": 12.0, "policy_loss": 0.1},
         "loss -0.02  reward 1.300  KL 2.5  length 12"),
    ],
)  # fmt: skip
def test_format_progress_shows_the_metrics_of_each_stage(logged, words):
    assert format_progress(5, 10, logged, {}) == f"step 5/10  50%  {words}"


def test_format_evaluation_of_pretraining():
    logs = {"eval_loss": 3.5, "eval_bits_per_byte": 0.97, "eval_perplexity": 33.12, "eval_runtime": 12.2, "epoch": 0.1}
    expected = "step 5/10  evaluation  val 3.500  0.970 bits/byte  perplexity 33.12  (12 s)"
    assert format_evaluation(5, 10, logs) == expected


def make_attached_trainer(make_trainer, **settings):
    rows = Rows([8] * 8, 8)
    trainer = make_trainer(rows, rows, max_steps=6, eval_strategy="steps", eval_steps=3, **settings)
    attach_callbacks(trainer, bytes_per_token=3.0)
    return trainer


def test_in_a_file_every_entry_is_one_plain_line_without_a_bar(make_trainer, capfd):
    make_attached_trainer(make_trainer, disable_tqdm=False).train()
    printed, errors = capfd.readouterr()
    lines = printed.splitlines()
    assert [line.split("  ")[0] for line in lines if "loss" in line] == [f"step {step}/6" for step in range(1, 7)]
    assert len([line for line in lines if "  evaluation  val " in line]) == 2
    assert "bits/byte" in next(line for line in lines if line.startswith("step 4/6"))
    assert "\x1b" not in printed
    assert "{" not in printed
    assert "it/s" not in printed + errors


def record_terminal(work, monkeypatch) -> str:
    """Call `work()` with a real terminal of 70 columns as standard output; returns what it writes there."""
    master, slave = os.openpty()
    blocks = []
    output = os.fdopen(slave, "w")

    def collect():
        while True:
            try:
                block = os.read(master, 4096)
            except OSError:  # the other end is closed
                return
            blocks.append(block)

    thread = threading.Thread(target=collect)
    thread.start()
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", output)
        patched.setenv("TERM", "xterm")
        patched.setenv("COLUMNS", "70")
        work()
    output.close()
    thread.join(60)
    os.close(master)
    return b"".join(blocks).decode().replace("\r\n", "\n")


@needs_terminal
def test_on_a_terminal_one_line_is_redrawn_at_the_bottom(make_trainer, monkeypatch):
    monkeypatch.setattr(console, "MIN_REDRAW_SECONDS", -1.0)  # a training of a second, to be seen in full
    printed = record_terminal(make_attached_trainer(make_trainer, disable_tqdm=False).train, monkeypatch)
    lines = [line.rsplit(CLEAR_LINE, 1)[-1] for line in printed.split("\n")]  # what is left to see of each
    assert len([line for line in lines if "evaluation" in line]) == 2
    assert [line.split("  ")[0] for line in lines if "loss" in line] == ["step 6/6"]  # the last, when all is done
    drawn = printed.replace("\n", CLEAR_LINE).split(CLEAR_LINE)
    for step in range(1, 7):
        assert any(re.match(rf"step {step}/6  \d+%  .*loss", line) for line in drawn)
    assert any("evaluating, batch" in line for line in drawn)
    redrawn = [line for line in drawn if line.startswith("step") and "evaluation" not in line][:-1]
    assert max(map(len, redrawn)) <= 69  # never more than a line


@needs_terminal
def test_with_bars_disabled_a_terminal_has_plain_lines(make_trainer, monkeypatch):
    printed = record_terminal(make_attached_trainer(make_trainer, disable_tqdm=True).train, monkeypatch)
    lines = [line.rsplit(CLEAR_LINE, 1)[-1] for line in printed.split("\n")]
    assert len([line for line in lines if "loss" in line]) == 6

"""`python -m hf_llm.watch`, as a person calls it."""

import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from tests.monitoring.made_up_run import write_made_up_run
from tests.processes import SECONDS, started
from tests.tiny_recipe import run_module


def test_without_a_terminal_the_runs_are_shown_once(tmp_path):
    write_made_up_run(tmp_path / "runs" / "first")
    write_made_up_run(tmp_path / "runs" / "second", steps=600)
    result = run_module("hf_llm.watch", "runs/first", "runs/second", folder=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "step 1,200/2,000  60%  ETA 17 min  loss" in result.stdout
    assert "step 600/2,000  30%" in result.stdout
    assert "\x1b" not in result.stdout


def test_a_missing_run_is_a_user_error(tmp_path):
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    result = run_module("hf_llm.watch", "runs/quickstar", folder=tmp_path)
    assert result.returncode == 2
    assert "did you mean runs/quickstart?" in result.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("ignores_interrupts", [False, True])
def test_the_page_is_served_until_it_is_interrupted(tmp_path, number, ignores_interrupts):
    write_made_up_run(tmp_path / "runs" / "first")
    command = [sys.executable, "-m", "hf_llm.watch", "runs/first", "--page", "--port", "0"]
    with started(command, ignores_interrupts, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        assert b"page.js" in urllib.request.urlopen(url, timeout=60).read()
        process.send_signal(number)
        assert process.wait(SECONDS) == 0


def test_watching_needs_no_torch(tmp_path):
    modules = "hf_llm.watch, hf_llm.monitoring.terminal_view, hf_llm.monitoring.live_page"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"

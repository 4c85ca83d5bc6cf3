"""`python -m hf_llm.watch`, as a person calls it."""

import os
import re
import subprocess
import sys
import urllib.request

from tests.monitoring.made_up_run import made_up_run
from tests.tiny_recipe import run_module


def test_where_the_output_is_no_terminal_the_runs_are_shown_once(tmp_path):
    made_up_run(tmp_path / "runs" / "first")
    made_up_run(tmp_path / "runs" / "second", steps=600)
    done = run_module("hf_llm.watch", "runs/first", "runs/second", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "step 1,200/2,000  loss" in done.stdout
    assert "step 600/2,000  loss" in done.stdout
    assert "\x1b" not in done.stdout


def test_a_run_that_is_not_there_is_the_users_fault(tmp_path):
    (tmp_path / "runs" / "quickstart").mkdir(parents=True)
    done = run_module("hf_llm.watch", "runs/quickstar", folder=tmp_path)
    assert done.returncode == 2
    assert "did you mean runs/quickstart?" in done.stderr


def test_the_page_is_served_until_it_is_told_to_end(tmp_path):
    made_up_run(tmp_path / "runs" / "first")
    command = [sys.executable, "-m", "hf_llm.watch", "runs/first", "--page", "--port", "0"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, env=dict(os.environ)) as process:
        url = process.stdout.readline().strip()
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", url)
        assert b"page.js" in urllib.request.urlopen(url, timeout=60).read()
        process.send_signal(2)
        assert process.wait(60) == 0


def test_watching_needs_no_torch(tmp_path):
    modules = "hf_llm.watch, hf_llm.monitoring.terminal_view, hf_llm.monitoring.live_page"
    code = f"import sys, {modules}; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"

"""Progress in a log file: a line now and then."""

import io
import subprocess
import sys

from hf_llm.core import progress


def test_work_that_is_soon_done_writes_nothing_to_a_file(capsys):
    with progress.open_progress_bar(total=3, desc="cleaning") as bar:
        bar.update(3)
    assert capsys.readouterr().err == ""


def test_long_work_writes_whole_lines(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    file = io.StringIO()
    with progress.open_progress_bar(total=3, desc="cleaning", file=file, miniters=1, delay=0) as bar:
        for _ in range(3):
            bar.update()
    lines = file.getvalue().splitlines()
    assert len(lines) == 3
    assert all(line.startswith("cleaning: ") for line in lines)
    assert "\r" not in file.getvalue()


def test_bars_of_libraries_wait_before_they_appear():
    code = "import hf_llm, tqdm; [None for _ in tqdm.tqdm(range(5))]; print('done')"
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (finished.stdout, finished.stderr) == ("done\n", "")

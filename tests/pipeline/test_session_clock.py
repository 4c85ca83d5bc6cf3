import json
import os
import time

from hf_llm.pipeline.session_clock import CLOCK_FILE, SessionClock


def test_the_seconds_of_all_sessions_add_up(tmp_path):
    first = SessionClock(tmp_path)
    first.start()
    first._started -= 100
    first.stop()
    second = SessionClock(tmp_path)
    second.start()
    second._started -= 20
    assert 120 <= second.seconds < 130
    second.remove()
    assert not (tmp_path / CLOCK_FILE).exists()


def test_a_killed_session_lasted_until_its_last_file(tmp_path):
    began = time.time() - 1000
    (tmp_path / CLOCK_FILE).write_text(json.dumps({"seconds": 7.0, "began": began}))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/metrics.jsonl").write_text("{}")
    for path in (tmp_path / CLOCK_FILE, tmp_path / "logs"):
        os.utime(path, (began, began))
    os.utime(tmp_path / "logs/metrics.jsonl", (began + 60, began + 60))
    clock = SessionClock(tmp_path)
    clock.start()
    assert 66.5 <= clock.seconds < 70


def test_a_damaged_clock_begins_anew(tmp_path):
    (tmp_path / CLOCK_FILE).write_text("{")
    clock = SessionClock(tmp_path)
    clock.start()
    assert clock.seconds < 5


def test_a_finished_training_that_is_continued_keeps_its_seconds_through_an_interruption(tmp_path):
    clock = SessionClock(tmp_path)
    clock.start(earlier_seconds=50.0)
    clock.stop()
    clock = SessionClock(tmp_path)
    clock.start(earlier_seconds=50.0)
    assert 50 <= clock.seconds < 60

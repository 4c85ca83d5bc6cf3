"""What was measured is kept for this machine and for this question, and for no other."""

import pytest
import torch

from hf_llm.hardware.measurement_cache import describe_machine, keep_measurement, read_measurement


@pytest.fixture(autouse=True)
def cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_answer_is_read_for_the_same_question_only():
    keep_measurement({"width": 64}, [1, 2])
    assert read_measurement({"width": 64}) == [1, 2]
    assert read_measurement({"width": 65}) is None


def test_an_answer_of_another_number_of_threads_is_not_read():
    keep_measurement({"width": 64}, [1, 2])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert read_measurement({"width": 64}) is None
    finally:
        torch.set_num_threads(threads)


def test_an_answer_for_which_onednn_was_limited_is_not_read_without_the_limit(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    keep_measurement({"width": 64}, [1, 2])
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    assert describe_machine()["bf16 units"] is False
    assert read_measurement({"width": 64}) is None


def test_an_old_answer_is_read_unless_a_recent_one_is_asked_for():
    keep_measurement({"width": 64}, [1, 2])
    assert read_measurement({"width": 64}, max_age_seconds=3600) == [1, 2]
    assert read_measurement({"width": 64}, max_age_seconds=-1) is None


def test_a_damaged_file_is_reported_and_measured_again(cache_folder, capsys):
    keep_measurement({"width": 64}, [1, 2])
    (file,) = cache_folder.rglob("*.json")
    file.write_text("{", encoding="utf-8")
    assert read_measurement({"width": 64}) is None
    assert str(file) in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_to_is_reported(cache_folder, capsys):
    cache_folder.write_text("a file in its place", encoding="utf-8")
    keep_measurement({"width": 64}, [1, 2])
    assert "cannot be written" in capsys.readouterr().out

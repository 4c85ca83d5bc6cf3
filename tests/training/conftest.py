"""Runs that nothing befell, to compare with."""

from types import SimpleNamespace

import pytest

from tests.training.fault_tolerance.faults import run


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory):
    """A run of one process, to the end, all its checkpoints kept: `folder`, `ended`."""
    folder = tmp_path_factory.mktemp("undisturbed") / "base"
    ended = run(folder, keep=9)
    assert ended.code == 0, ended.output
    return SimpleNamespace(folder=folder, ended=ended)


@pytest.fixture(scope="session")
def undisturbed_by_two(tmp_path_factory):
    """The outcome of a run of two processes over gloo."""
    ended = run(tmp_path_factory.mktemp("two") / "base", processes=2)
    assert ended.codes == [0, 0], ended.output
    return ended.outcome

"""The votes file under two writers, a killed process, damage and locks."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from hf_llm.core.errors import UserError
from hf_llm.human_eval.votes import Votes, annotator_name, create_votes, first_is_a
from tests.human_eval.comparison import judge_all, plan, votes_file

HERE = Path(__file__).parent
WRITER = """
import sys, time
from pathlib import Path
from hf_llm.human_eval.votes import Votes
votes = Votes(Path(sys.argv[1]))
while question := votes.question(sys.argv[2]):
    votes.vote(question.pair, sys.argv[2], "a" if question.a.startswith("good") else "b")
    print(question.pair, flush=True)
    while len({vote.annotator for vote in votes.standing()}) < int(sys.argv[3]):
        time.sleep(0.01)
"""


def writer(path: Path, annotator: str, annotators: int = 1, **more) -> subprocess.Popen:
    """A process that casts every vote of `annotator`; after its first one it waits for as many `annotators`."""
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), annotator, str(annotators)], text=True, **more)


def test_each_annotator_judges_every_pair_once_in_the_same_order(tmp_path):
    votes = votes_file(tmp_path, prompts=12)
    for name in ("Ada", "Ben"):
        judge_all(votes, name)
        assert votes.question(name) is None
        assert votes.progress(name) == {"done": 12, "total": 12, "waiting": 0, "equal": 0}
    cast = votes.standing()
    assert [v.pair for v in cast] == [*range(12), *range(12)]
    assert all(v.winner == "good" for v in cast)
    assert votes.annotators() == ["Ada", "Ben"]


def test_sides_are_random_recorded_and_the_same_each_time(tmp_path):
    votes = votes_file(tmp_path, prompts=200)
    assert votes.question("Ada") == votes.question("Ada")
    judge_all(votes, "Ada")
    for v in votes.standing():
        assert (v.model_a == v.first) == first_is_a(votes.seed, v.pair, "Ada")
    left = sum(first_is_a(3, pair, "Ada") for pair in range(2000))
    assert 900 < left < 1100
    assert 900 < sum(first_is_a(3, pair, "Ada") == first_is_a(3, pair, "Ben") for pair in range(2000)) < 1100


def test_a_vote_twice_is_one_and_undo_takes_the_last_back_but_keeps_it_in_the_file(tmp_path):
    votes = votes_file(tmp_path)
    pair = votes.question("Ada").pair
    assert votes.vote(pair, "Ada", "a", 5, None, 1.5)
    assert not votes.vote(pair, "Ada", "b")
    assert [(v.choice, v.score_a, v.seconds) for v in votes.standing()] == [("a", 5, 1.5)]
    assert not votes.undo("Ben")
    assert votes.undo("Ada")
    assert not votes.undo("Ada")
    assert votes.question("Ada").pair == pair
    assert votes.vote(pair, "Ada", "b")
    kept = sqlite3.connect(votes.path).execute("SELECT choice, undone IS NULL FROM votes ORDER BY id").fetchall()
    assert kept == [("a", 0), ("b", 1)]


@pytest.mark.parametrize("wrong", [(0, "c"), (0, "a", 6), (0, "a", None, 0), (99, "a"), (-1, "a")])
def test_votes_that_cannot_be_are_refused(tmp_path, wrong):
    votes = votes_file(tmp_path)
    pair, choice, *scores = wrong
    with pytest.raises(ValueError):
        votes.vote(pair, "Ada", choice, *scores)
    assert votes.standing() == []


def test_pairs_without_both_answers_wait_and_equal_answers_are_not_asked(tmp_path):
    comparison = plan(3)
    order = [prompt for prompt, _, _ in comparison.pairs]
    comparison.answers = {"good": {order[0]: "same", order[1]: "x"}, "weak": {order[0]: " same\n"}}
    create_votes(tmp_path / "v.sqlite", comparison)
    votes = Votes(tmp_path / "v.sqlite")
    assert votes.question("Ada") is None
    assert votes.progress("Ada") == {"done": 0, "total": 2, "waiting": 2, "equal": 1}
    assert votes.missing() == {"weak": order[1:], "good": order[2:]}
    votes.add_answers("weak", {order[1]: "y"})
    votes.add_answers("weak", {order[1]: "another, too late"})
    assert {votes.question("Ada").a, votes.question("Ada").b} == {"x", "y"}
    with pytest.raises(ValueError):
        votes.vote(2, "Ada", "a")


def test_two_processes_write_hundreds_of_votes_at_once_and_none_is_lost(tmp_path):
    votes = votes_file(tmp_path, prompts=300)
    both = [writer(votes.path, name, annotators=2, stdout=subprocess.PIPE) for name in ("Ada", "Ben")]
    told = [len(process.communicate(timeout=60)[0].split()) for process in both]
    assert told == [300, 300]
    cast = votes.standing()
    assert len(cast) == len({(v.annotator, v.pair) for v in cast}) == 600
    assert {v.annotator for v in cast[:2]} == {"Ada", "Ben"}  # and went on from there together


def test_two_processes_under_one_name_share_the_pairs(tmp_path):
    votes = votes_file(tmp_path, prompts=100)
    both = [writer(votes.path, "Ada", stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert sorted(v.pair for v in votes.standing()) == list(range(100))


def test_a_killed_process_loses_no_vote_it_has_told(tmp_path):
    votes = votes_file(tmp_path, prompts=400)
    votes.close()
    process = writer(votes.path, "Ada", stdout=subprocess.PIPE)
    told = [int(process.stdout.readline()) for _ in range(60)]
    os.kill(process.pid, signal.SIGKILL)
    told += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    process.wait()
    again = Votes(votes.path)
    kept = [v.pair for v in again.standing()]
    assert kept[: len(told)] == told
    assert len(kept) - len(told) in (0, 1)  # one may be on the disk and not told yet
    judge_all(again, "Ben")
    assert again.progress("Ben")["done"] == 400


def test_a_file_cut_off_anywhere_is_refused_and_left_as_it_is(tmp_path):
    votes = votes_file(tmp_path, prompts=200)
    judge_all(votes, "Ada")
    votes.close()
    whole = votes.path.read_bytes()
    assert not list(tmp_path.glob("*-wal"))
    for size in (0, 50, 99, 4096, len(whole) // 2, len(whole) - 4096, len(whole) - 100):
        part = tmp_path / f"cut{size}.sqlite"
        part.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cut off|damaged") as refusal:
            Votes(part)
        assert str(part) in str(refusal.value)
        assert part.read_bytes() == whole[:size]


def test_a_page_overwritten_with_noise_is_found(tmp_path):
    votes = votes_file(tmp_path, prompts=200)
    judge_all(votes, "Ada")
    votes.close()
    noise = bytearray(votes.path.read_bytes())
    noise[-8192:-4096] = os.urandom(4096)
    votes.path.write_bytes(noise)
    with pytest.raises(UserError, match="damaged"):
        Votes(votes.path)


def test_other_files_are_no_votes(tmp_path):
    (tmp_path / "text.sqlite").write_text("no database at all, but long enough to have a header " * 40)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE t (x)")
    other.commit()
    for name, words in {"text": "no SQLite file", "other": "no votes file", "missing": "there is no"}.items():
        with pytest.raises(UserError, match=words):
            Votes(tmp_path / f"{name}.sqlite")
    assert not (tmp_path / "missing.sqlite").exists()


def test_a_locked_file_is_said_and_the_vote_can_be_given_again(tmp_path):
    votes = votes_file(tmp_path)
    other = sqlite3.connect(votes.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match="locked by another program"):
        votes.vote(0, "Ada", "a")
    assert votes.question("Ada").pair == 0  # reading goes on
    other.execute("ROLLBACK")
    assert votes.vote(0, "Ada", "a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_file_that_may_not_be_written_is_said(tmp_path):
    votes = votes_file(tmp_path)
    votes.close()
    votes.path.chmod(0o400)
    with pytest.raises(UserError, match="may not be written"):
        Votes(votes.path).vote(0, "Ada", "a")


def test_whoever_is_second_to_make_the_file_leaves_the_first_ones(tmp_path):
    votes = votes_file(tmp_path)
    judge_all(votes, "Ada")
    create_votes(votes.path, plan(5))
    assert len(Votes(votes.path).standing()) == 20
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


def test_a_copy_made_by_sqlite_while_people_vote_is_whole(tmp_path):
    votes = votes_file(tmp_path)
    votes.vote(0, "Ada", "a")
    if shutil.which("sqlite3") is None:
        sqlite3.connect(votes.path).backup(copy := sqlite3.connect(tmp_path / "copy.sqlite"))
        copy.close()
    else:
        subprocess.run(["sqlite3", votes.path, f".backup {tmp_path / 'copy.sqlite'}"], check=True)
    assert len(Votes(tmp_path / "copy.sqlite").standing()) == 1


@pytest.mark.parametrize("name", ["", "   ", "x" * 61, "a\nb\x00", "\u202e", 7, None, "a\ud800"])
def test_names_that_cannot_be_read_are_refused(name):
    with pytest.raises(ValueError):
        annotator_name(name)


def test_a_name_typed_twice_is_the_same_name():
    assert annotator_name("  Ada \t Lovelace ") == "Ada Lovelace"
    assert annotator_name("Ame\u0301lie") == "Am\u00e9lie"

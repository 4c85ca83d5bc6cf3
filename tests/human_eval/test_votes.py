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
from hf_llm.human_eval.votes import Vote, VoteDatabase, create_database, is_first_shown_as_a, normalize_annotator_name
from tests.human_eval.comparison import make_database, plan, vote_on_all

WRITER = """
import sys, time
from pathlib import Path
from hf_llm.human_eval.votes import VoteDatabase
database = VoteDatabase(Path(sys.argv[1]))
while question := database.next_question(sys.argv[2]):
    database.record_vote(question.pair, sys.argv[2], "a" if question.a.startswith("good") else "b")
    print(question.pair, flush=True)
    while len({vote.annotator for vote in database.read_votes()}) < int(sys.argv[3]):
        time.sleep(0.01)
"""


def start_writer(path: Path, annotator: str, annotators: int = 1, **more) -> subprocess.Popen:
    """A process that casts every vote of `annotator`; after its first one it waits for as many `annotators`."""
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), annotator, str(annotators)], text=True, **more)


def test_each_annotator_votes_on_every_pair_once_in_the_same_order(tmp_path):
    database = make_database(tmp_path, prompts=12)
    for name in ("Ada", "Ben"):
        vote_on_all(database, name)
        assert database.next_question(name) is None
        assert database.count_progress(name) == {"done": 12, "total": 12, "waiting": 0, "equal": 0}
    votes = database.read_votes()
    assert [v.pair for v in votes] == [*range(12), *range(12)]
    assert all(v.winner == "good" for v in votes)
    assert database.list_annotators() == ["Ada", "Ben"]


def test_sides_are_random_recorded_and_the_same_each_time(tmp_path):
    database = make_database(tmp_path, prompts=200)
    assert database.next_question("Ada") == database.next_question("Ada")
    vote_on_all(database, "Ada")
    for v in database.read_votes():
        assert (v.model_a == v.first) == is_first_shown_as_a(database.seed, v.pair, "Ada")
    left = sum(is_first_shown_as_a(3, pair, "Ada") for pair in range(2000))
    assert 900 < left < 1100
    assert (
        900
        < sum(is_first_shown_as_a(3, pair, "Ada") == is_first_shown_as_a(3, pair, "Ben") for pair in range(2000))
        < 1100
    )


def test_a_vote_twice_is_one_and_undo_takes_the_last_back_but_keeps_it_in_the_file(tmp_path):
    database = make_database(tmp_path)
    pair = database.next_question("Ada").pair
    assert database.record_vote(pair, "Ada", "a", 5, None, 1.5)
    assert not database.record_vote(pair, "Ada", "b")
    assert [(v.choice, v.score_a, v.seconds) for v in database.read_votes()] == [("a", 5, 1.5)]
    assert not database.undo_last_vote("Ben")
    assert database.undo_last_vote("Ada")
    assert not database.undo_last_vote("Ada")
    assert database.next_question("Ada").pair == pair
    assert database.record_vote(pair, "Ada", "b")
    kept = sqlite3.connect(database.path).execute("SELECT choice, undone IS NULL FROM votes ORDER BY id").fetchall()
    assert kept == [("a", 0), ("b", 1)]


@pytest.mark.parametrize("wrong", [(0, "c"), (0, "a", 6), (0, "a", None, 0), (99, "a"), (-1, "a")])
def test_invalid_votes_are_refused(tmp_path, wrong):
    database = make_database(tmp_path)
    pair, choice, *scores = wrong
    with pytest.raises(ValueError):
        database.record_vote(pair, "Ada", choice, *scores)
    assert database.read_votes() == []


def test_pairs_without_both_answers_wait_and_equal_answers_are_not_shown(tmp_path):
    comparison = plan(3)
    order = [prompt for prompt, _, _ in comparison.pairs]
    comparison.answers = {"good": {order[0]: "same", order[1]: "x"}, "weak": {order[0]: " same\n"}}
    create_database(tmp_path / "v.sqlite", comparison)
    database = VoteDatabase(tmp_path / "v.sqlite")
    assert database.next_question("Ada") is None
    assert database.count_progress("Ada") == {"done": 0, "total": 2, "waiting": 2, "equal": 1}
    assert database.find_missing_answers() == {"weak": order[1:], "good": order[2:]}
    database.add_answers("weak", {order[1]: "y"})
    database.add_answers("weak", {order[1]: "another, too late"})
    assert {database.next_question("Ada").a, database.next_question("Ada").b} == {"x", "y"}
    with pytest.raises(ValueError):
        database.record_vote(2, "Ada", "a")


def test_two_processes_write_hundreds_of_votes_at_once_and_none_is_lost(tmp_path):
    database = make_database(tmp_path, prompts=300)
    both = [start_writer(database.path, name, annotators=2, stdout=subprocess.PIPE) for name in ("Ada", "Ben")]
    counts = [len(process.communicate(timeout=60)[0].split()) for process in both]
    assert counts == [300, 300]
    votes = database.read_votes()
    assert len(votes) == len({(v.annotator, v.pair) for v in votes}) == 600
    assert {v.annotator for v in votes[:2]} == {"Ada", "Ben"}  # the first two overlap


def test_two_processes_under_one_name_share_the_pairs(tmp_path):
    database = make_database(tmp_path, prompts=100)
    both = [start_writer(database.path, "Ada", stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [process.wait(60) for process in both] == [0, 0]
    assert sorted(v.pair for v in database.read_votes()) == list(range(100))


def test_a_killed_process_loses_no_acknowledged_vote(tmp_path):
    database = make_database(tmp_path, prompts=400)
    database.close()
    process = start_writer(database.path, "Ada", stdout=subprocess.PIPE)
    acknowledged = [int(process.stdout.readline()) for _ in range(60)]
    os.kill(process.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    process.wait(60)
    again = VoteDatabase(database.path)
    kept = [v.pair for v in again.read_votes()]
    assert kept[: len(acknowledged)] == acknowledged
    assert len(kept) - len(acknowledged) in (0, 1)  # one may be on the disk and not acknowledged yet
    vote_on_all(again, "Ben")
    assert again.count_progress("Ben")["done"] == 400


def test_a_file_cut_off_anywhere_is_refused_and_left_as_it_is(tmp_path):
    database = make_database(tmp_path, prompts=200)
    vote_on_all(database, "Ada")
    database.close()
    whole = database.path.read_bytes()
    assert not list(tmp_path.glob("*-wal"))
    for size in (0, 50, 99, 4096, len(whole) // 2, len(whole) - 4096, len(whole) - 100):
        part = tmp_path / f"cut{size}.sqlite"
        part.write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"cut off|damaged") as refusal:
            VoteDatabase(part)
        assert str(part) in str(refusal.value)
        assert part.read_bytes() == whole[:size]


def test_a_page_overwritten_with_noise_is_detected(tmp_path):
    database = make_database(tmp_path, prompts=200)
    vote_on_all(database, "Ada")
    database.close()
    noise = bytearray(database.path.read_bytes())
    noise[-8192:-4096] = os.urandom(4096)
    database.path.write_bytes(noise)
    with pytest.raises(UserError, match="damaged"):
        VoteDatabase(database.path)


def test_other_files_are_refused(tmp_path):
    (tmp_path / "text.sqlite").write_text("no database at all, but long enough to have a header " * 40)
    other = sqlite3.connect(tmp_path / "other.sqlite")
    other.execute("CREATE TABLE t (x)")
    other.commit()
    for name, message in {
        "text": "not a SQLite file",
        "other": "not a file of votes",
        "missing": "there is no file",
    }.items():
        with pytest.raises(UserError, match=message):
            VoteDatabase(tmp_path / f"{name}.sqlite")
    assert not (tmp_path / "missing.sqlite").exists()


def test_a_locked_file_is_reported_and_the_vote_can_be_repeated(tmp_path):
    database = make_database(tmp_path)
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match="locked by another program"):
        database.record_vote(0, "Ada", "a")
    assert database.next_question("Ada").pair == 0  # reading still works
    other.execute("ROLLBACK")
    assert database.record_vote(0, "Ada", "a")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_file_that_may_not_be_written_is_reported(tmp_path):
    database = make_database(tmp_path)
    database.close()
    database.path.chmod(0o400)
    with pytest.raises(UserError, match="may not be written"):
        VoteDatabase(database.path).record_vote(0, "Ada", "a")


def test_a_second_creator_keeps_the_first_ones_file(tmp_path):
    database = make_database(tmp_path)
    vote_on_all(database, "Ada")
    create_database(database.path, plan(5))
    assert len(VoteDatabase(database.path).read_votes()) == 20
    assert [path.name for path in tmp_path.iterdir() if "tmp" in path.name] == []


def test_a_copy_made_by_sqlite_while_people_vote_is_whole(tmp_path):
    database = make_database(tmp_path)
    database.record_vote(0, "Ada", "a")
    if shutil.which("sqlite3") is None:
        sqlite3.connect(database.path).backup(copy := sqlite3.connect(tmp_path / "copy.sqlite"))
        copy.close()
    else:
        subprocess.run(["sqlite3", database.path, f".backup {tmp_path / 'copy.sqlite'}"], check=True)
    assert len(VoteDatabase(tmp_path / "copy.sqlite").read_votes()) == 1


@pytest.mark.parametrize("name", ["", "   ", "x" * 61, "a\nb\x00", "\u202e", 7, None, "a\ud800"])
def test_unreadable_names_are_refused(name):
    with pytest.raises(ValueError):
        normalize_annotator_name(name)


def test_a_name_typed_twice_is_the_same_name():
    assert normalize_annotator_name("  Ada \t Lovelace ") == "Ada Lovelace"
    assert normalize_annotator_name("Ame\u0301lie") == "Am\u00e9lie"


# What the code at commit f8d35d4 wrote, before `hf_llm.judge` became `hf_llm.arena`: header, schema, and two votes, the
# second undone.
EARLIER_DATABASE = """
PRAGMA application_id = 1751542375;
PRAGMA user_version = 1;
CREATE TABLE settings (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE models (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, made_with TEXT NOT NULL);
CREATE TABLE prompts (id INTEGER PRIMARY KEY, messages TEXT NOT NULL);
CREATE TABLE pairs (
  id INTEGER PRIMARY KEY,
  prompt INTEGER NOT NULL REFERENCES prompts,
  first INTEGER NOT NULL REFERENCES models,
  second INTEGER NOT NULL REFERENCES models
);
CREATE TABLE answers (
  prompt INTEGER NOT NULL REFERENCES prompts,
  model INTEGER NOT NULL REFERENCES models,
  text TEXT NOT NULL,
  PRIMARY KEY (prompt, model)
);
CREATE TABLE votes (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  pair INTEGER NOT NULL REFERENCES pairs,
  annotator TEXT NOT NULL,
  choice TEXT NOT NULL CHECK (choice IN ('a', 'b', 'tie', 'bad', 'skip')),
  model_a INTEGER NOT NULL REFERENCES models,
  score_a INTEGER CHECK (score_a BETWEEN 1 AND 5),
  score_b INTEGER CHECK (score_b BETWEEN 1 AND 5),
  seconds REAL,
  created TEXT NOT NULL,
  undone TEXT
);
CREATE UNIQUE INDEX one_vote_each ON votes (pair, annotator) WHERE undone IS NULL;
INSERT INTO settings VALUES
  ('seed', '42'), ('token', '517803c8f534b26b87a8853848a3192f'), ('created', '2026-11-30T15:02:09Z');
INSERT INTO models VALUES
  (0, 'ours', '{"file": "answers.jsonl", "digest": "8cce"}'),
  (1, 'gpt2', '{"file": "answers.jsonl", "digest": "8cce"}');
INSERT INTO prompts VALUES
  (0, '[{"role": "user", "content": "Question 0?"}]'), (1, '[{"role": "user", "content": "Question 1?"}]');
INSERT INTO pairs VALUES (0, 1, 0, 1), (1, 0, 0, 1);
INSERT INTO answers VALUES (0, 0, 'right 0'), (1, 0, 'right 1'), (0, 1, 'wrong 0'), (1, 1, 'wrong 1');
INSERT INTO votes VALUES
  (1, 0, 'Ada', 'a', 1, 5, NULL, 2.5, '2026-11-30T15:02:09Z', NULL),
  (2, 1, 'Ada', 'b', 1, NULL, NULL, 1.0, '2026-11-30T15:02:10Z', '2026-11-30T15:02:11Z');
"""


def test_votes_of_earlier_versions_are_read_and_continued(tmp_path):
    path = tmp_path / "sft-dpo.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(EARLIER_DATABASE)
    connection.close()

    with VoteDatabase(path) as database:
        assert (database.seed, database.token) == (42, "517803c8f534b26b87a8853848a3192f")
        assert database.read_models()["ours"] == {"file": "answers.jsonl", "digest": "8cce"}
        assert database.read_votes() == [Vote(0, 1, "Ada", "a", "ours", "gpt2", "gpt2", score_a=5, seconds=2.5)]
        assert database.count_progress("Ada") == {"done": 1, "total": 2, "waiting": 0, "equal": 0}

        question = database.next_question("Ada")
        assert (question.pair, question.a, question.b) == (1, "wrong 0", "right 0")
        assert database.record_vote(question.pair, "Ada", "b")
        assert [vote.winner for vote in database.read_votes()] == ["gpt2", "ours"]


def test_a_new_database_has_the_schema_of_earlier_versions(tmp_path):
    earlier = sqlite3.connect(":memory:")
    earlier.executescript(EARLIER_DATABASE)
    current = sqlite3.connect(make_database(tmp_path).path)
    query = "SELECT sql FROM sqlite_master ORDER BY name"
    assert current.execute(query).fetchall() == earlier.execute(query).fetchall()

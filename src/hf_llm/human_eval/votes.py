"""One SQLite file for one comparison: the models, the prompts, their answers, which two are shown, and every vote.

WAL journal, each change one transaction that is on the disk before it is told as done: two processes may write at once,
and a killed one loses nothing it has told. A file cut off, locked or full is a UserError; it is never written over. WAL
needs shared memory, so the file belongs on a local disk (https://sqlite.org/wal.html).
"""

import json
import os
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from hf_llm.core.errors import UserError
from hf_llm.human_eval.comparison_plan import Conversation, Plan

CHOICES = ("a", "b", "tie", "bad", "skip")
APPLICATION = 0x68666A67  # "hfjg" in the file's header: tells our votes from another program's database
VERSION = 1
SMALLEST = 512  # bytes of the smallest page, so of the smallest database
LONGEST_NAME = 60

_SCHEMA = f"""
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
BEGIN;
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
  choice TEXT NOT NULL CHECK (choice IN {CHOICES}),
  model_a INTEGER NOT NULL REFERENCES models,
  score_a INTEGER CHECK (score_a BETWEEN 1 AND 5),
  score_b INTEGER CHECK (score_b BETWEEN 1 AND 5),
  seconds REAL,
  created TEXT NOT NULL,
  undone TEXT
);
CREATE UNIQUE INDEX one_vote_each ON votes (pair, annotator) WHERE undone IS NULL;
"""

_ANSWERED = """
FROM pairs
JOIN prompts ON prompts.id = pairs.prompt
JOIN answers AS x ON x.prompt = pairs.prompt AND x.model = pairs.first
JOIN answers AS y ON y.prompt = pairs.prompt AND y.model = pairs.second
WHERE stripped(x.text)
"""
_READY = f"{_ANSWERED} <> stripped(y.text)"  # pairs that can be judged
_EQUAL = f"{_ANSWERED} = stripped(y.text)"


@dataclass(frozen=True)
class Question:
    """Two answers to the same prompt, as one annotator sees them: blind."""

    pair: int
    messages: Conversation
    a: str
    b: str


@dataclass(frozen=True)
class Vote:
    """One judgement that stands. `first` and `second` are the pair's models, `model_a` the one shown as A."""

    pair: int
    prompt: int
    annotator: str
    choice: str
    first: str
    second: str
    model_a: str
    score_a: int | None = None
    score_b: int | None = None
    seconds: float | None = None

    @property
    def model_b(self) -> str:
        """The model shown as B."""
        return self.second if self.model_a == self.first else self.first

    @property
    def winner(self) -> str | None:
        """The model preferred; None for a tie, both bad or a skip."""
        return {"a": self.model_a, "b": self.model_b}.get(self.choice)


class Votes:
    """The votes file at `path`, made by `create_votes`. Safe to share between threads and between processes.

    `patience` is how many seconds to wait for another program that is writing. Raises UserError where the file is
    missing, cut off, locked or no votes file.
    """

    def __init__(self, path: Path, patience: float = 10.0):
        self.path = Path(path)
        self._lock = threading.Lock()
        if not self.path.exists():
            raise UserError(f"there is no votes file {self.path}; name the models to judge and it is made")
        if self.path.stat().st_size < SMALLEST:
            raise UserError(f"{self.path} is too short for a votes file: it was cut off. {_RESTORE}")
        with self._faults():
            self._connection = sqlite3.connect(
                self.path, timeout=patience, check_same_thread=False, isolation_level=None
            )
            self._connection.create_function("stripped", 1, str.strip, deterministic=True)
            self._check()
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")
        self.seed = int(self._setting("seed"))
        self.token = self._setting("token")

    def _check(self) -> None:
        """Raise unless every page of the file is there and it is one of ours."""
        if self._connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION:
            raise UserError(f"{self.path} is no votes file; name another with --votes")
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if version != VERSION:
            raise UserError(f"{self.path} is of version {version}, this program writes {VERSION}; name another file")
        if self._connection.execute("PRAGMA integrity_check").fetchone()[0] != "ok":
            raise UserError(f"{self.path} is damaged. {_RESTORE}")

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> "Votes":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def models(self) -> dict[str, dict[str, Any]]:
        """What made each model's answers, by the model's name."""
        return {name: json.loads(made) for name, made in self._rows("SELECT name, made_with FROM models ORDER BY id")}

    def prompts(self) -> list[Conversation]:
        """The prompts, in the order of their numbers (from 0)."""
        return [json.loads(messages) for (messages,) in self._rows("SELECT messages FROM prompts ORDER BY id")]

    def annotators(self) -> list[str]:
        """Everyone with a vote that stands."""
        return [name for (name,) in self._rows("SELECT DISTINCT annotator FROM votes WHERE undone IS NULL ORDER BY 1")]

    def missing(self) -> dict[str, list[int]]:
        """The prompts that each model has still to answer, in the order in which their pairs are shown."""
        rows = self._rows(
            """
            SELECT models.name, pairs.prompt FROM pairs JOIN models ON models.id IN (pairs.first, pairs.second)
            LEFT JOIN answers ON answers.prompt = pairs.prompt AND answers.model = models.id
            WHERE answers.text IS NULL GROUP BY models.id, pairs.prompt ORDER BY min(pairs.id)
            """
        )
        found: dict[str, list[int]] = {}
        for name, prompt in rows:
            found.setdefault(name, []).append(prompt)
        return found

    def add_answers(self, model: str, texts: dict[int, str]) -> None:
        """Keep a model's answers by the number of the prompt. One that is there stays as it is."""
        rows = [(prompt, model, text) for prompt, text in texts.items()]
        with self._change() as connection:
            connection.executemany(
                "INSERT INTO answers SELECT ?, id, ?3 FROM models WHERE name = ?2 ON CONFLICT DO NOTHING", rows
            )

    def question(self, annotator: str) -> Question | None:
        """The next pair for this annotator; None where nothing is left, or nothing is answered yet.

        All annotators see the same order, so what they have in common grows from the start.
        """
        rows = self._rows(
            f"""
            SELECT pairs.id, prompts.messages, x.text, y.text {_READY} AND NOT EXISTS (
              SELECT 1 FROM votes WHERE votes.pair = pairs.id AND votes.annotator = ? AND votes.undone IS NULL
            ) ORDER BY pairs.id LIMIT 1
            """,
            annotator,
        )
        if not rows:
            return None
        pair, messages, *texts = rows[0]
        a, b = texts if first_is_a(self.seed, pair, annotator) else reversed(texts)
        return Question(pair, json.loads(messages), a, b)

    def vote(
        self,
        pair: int,
        annotator: str,
        choice: str,
        score_a: int | None = None,
        score_b: int | None = None,
        seconds: float | None = None,
    ) -> bool:
        """Record a judgement; it is on the disk when this returns. False where this annotator had judged the pair.

        Raises ValueError for a pair, choice or score that cannot be.
        """
        if choice not in CHOICES:
            raise ValueError(f"choice is {choice!r}; one of {', '.join(CHOICES)}")
        if any(score not in (None, 1, 2, 3, 4, 5) for score in (score_a, score_b)):
            raise ValueError("a score is a number from 1 to 5")
        with self._change() as connection:
            models = connection.execute(f"SELECT first, second {_READY} AND pairs.id = ?", (pair,)).fetchone()
            if models is None:
                raise ValueError(f"there is no pair {pair} to judge")
            model_a = models[0] if first_is_a(self.seed, pair, annotator) else models[1]
            row = (pair, annotator, choice, model_a, score_a, score_b, seconds, _now())
            columns = "pair, annotator, choice, model_a, score_a, score_b, seconds, created"
            done = connection.execute(
                f"INSERT INTO votes ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", row
            )
            return done.rowcount == 1

    def undo(self, annotator: str) -> bool:
        """Take this annotator's last vote back (it stays in the file, marked). False where there is none."""
        with self._change() as connection:
            done = connection.execute(
                """
                UPDATE votes SET undone = ? WHERE id = (
                  SELECT max(id) FROM votes WHERE annotator = ? AND undone IS NULL
                )
                """,
                (_now(), annotator),
            )
            return done.rowcount == 1

    def progress(self, annotator: str) -> dict[str, int]:
        """How many pairs this annotator has judged (`done`), there are (`total`) and have no answers yet (`waiting`).

        Pairs whose two answers are equal (`equal`) are not in the total.
        """
        [(pairs, ready, equal, done)] = self._rows(
            f"""
            SELECT (SELECT count(*) FROM pairs), (SELECT count(*) {_READY}),
              (SELECT count(*) {_EQUAL}),
              (SELECT count(*) FROM votes WHERE annotator = ? AND undone IS NULL)
            """,
            annotator,
        )
        return {"done": done, "total": pairs - equal, "waiting": pairs - equal - ready, "equal": equal}

    def standing(self) -> list[Vote]:
        """Every vote that stands, in the order of voting."""
        rows = self._rows(
            """
            SELECT pairs.id, pairs.prompt, annotator, choice, f.name, s.name, a.name, score_a, score_b, seconds
            FROM votes JOIN pairs ON pairs.id = votes.pair JOIN models AS f ON f.id = pairs.first
            JOIN models AS s ON s.id = pairs.second JOIN models AS a ON a.id = votes.model_a
            WHERE undone IS NULL ORDER BY votes.id
            """
        )
        return [Vote(*row) for row in rows]

    def answer(self, prompt: int, model: str) -> str:
        """What a model has answered to a prompt."""
        query = "SELECT text FROM answers JOIN models ON models.id = model WHERE prompt = ? AND name = ?"
        return self._rows(query, prompt, model)[0][0]

    def _setting(self, key: str) -> str:
        return self._rows("SELECT value FROM settings WHERE key = ?", key)[0][0]

    def _rows(self, query: str, *values: Any) -> list[tuple]:
        with self._lock, self._faults():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is written, or nothing."""
        with self._lock, self._faults():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    @contextmanager
    def _faults(self) -> Iterator[None]:
        with told(self.path):
            yield


def create_votes(path: Path, plan: Plan) -> None:
    """Make the votes file of a comparison; where another process was quicker, its file stays.

    The file appears whole or not at all, so that an empty one is always a damaged one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    with told(path):
        connection = sqlite3.connect(temporary, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(_SCHEMA)
        _fill(connection, plan)
        connection.execute("COMMIT")
        connection.close()
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass  # the other's file is as good as ours: whoever opens it compares the plans
    finally:
        temporary.unlink()


def _fill(connection: sqlite3.Connection, plan: Plan) -> None:
    numbers = {name: number for number, name in enumerate(plan.models)}
    settings = [("seed", str(plan.seed)), ("token", os.urandom(16).hex()), ("created", _now())]
    models = [(numbers[name], name, json.dumps(made)) for name, made in plan.models.items()]
    prompts = [(number, json.dumps(messages)) for number, messages in enumerate(plan.prompts)]
    pairs = [(i, prompt, numbers[x], numbers[y]) for i, (prompt, x, y) in enumerate(plan.pairs)]
    answers = [(prompt, numbers[name], text) for name, texts in plan.answers.items() for prompt, text in texts.items()]
    connection.executemany("INSERT INTO settings VALUES (?, ?)", settings)
    connection.executemany("INSERT INTO models VALUES (?, ?, ?)", models)
    connection.executemany("INSERT INTO prompts VALUES (?, ?)", prompts)
    connection.executemany("INSERT INTO pairs VALUES (?, ?, ?, ?)", pairs)
    connection.executemany("INSERT INTO answers VALUES (?, ?, ?)", answers)


def first_is_a(seed: int, pair: int, annotator: str) -> bool:
    """Whether the pair's first model is shown as A: a coin for each pair and annotator, the same at every call."""
    return xxhash.xxh3_64_intdigest(json.dumps([seed, pair, annotator]).encode()) & 1 == 0


def annotator_name(text: Any) -> str:
    """A person's name in one normal form (NFC, single spaces). Raises ValueError where it cannot be one."""
    name = " ".join(unicodedata.normalize("NFC", text).split()) if isinstance(text, str) else ""
    if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable():
        raise ValueError(f"a name has 1 to {LONGEST_NAME} letters, all of them visible")
    return name


_RESTORE = (
    "It is left as it is: bring back a copy, or save what can be read with `sqlite3 FILE .recover`, "
    "or name another file with --votes"
)


@contextmanager
def told(path: Path) -> Iterator[None]:
    """Turn what SQLite says about the file into a UserError with the remedy."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the kind, the rest its details
        remedies = {
            sqlite3.SQLITE_BUSY: "is locked by another program; close that one and try again: no vote is lost",
            sqlite3.SQLITE_FULL: "cannot grow: the disk is full; free some space and try again",
            sqlite3.SQLITE_READONLY: "may not be written; change its permissions, or name another file with --votes",
            sqlite3.SQLITE_CANTOPEN: "cannot be opened; check the folder and its permissions",
            sqlite3.SQLITE_IOERR: "cannot be read or written: the disk reports a fault",
            sqlite3.SQLITE_CORRUPT: f"is damaged. {_RESTORE}",
            sqlite3.SQLITE_NOTADB: f"is no SQLite file, or its beginning is damaged. {_RESTORE}",
        }
        if code not in remedies:
            raise
        raise UserError(f"{path} {remedies[code]}") from error


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

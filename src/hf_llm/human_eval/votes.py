"""Store one comparison in one SQLite file: models, prompts, answers, which two are shown together, and every vote.

Each change is one transaction that is on the disk before it is acknowledged, so a killed process loses no acknowledged
vote. The journal is WAL, so two processes may write at once; WAL needs shared memory, so the file belongs on a local
disk (https://sqlite.org/wal.html). A damaged or locked file, or a full disk, is a UserError; the file is never
overwritten.
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
from hf_llm.human_eval.comparison_plan import ComparisonPlan, Conversation

CHOICES = ("a", "b", "tie", "bad", "skip")
SCORES = (1, 2, 3, 4, 5)
APPLICATION_ID = 0x68666A67  # "hfjg" in the file's header: tells our votes from another program's database
SCHEMA_VERSION = 1
MIN_FILE_BYTES = 512  # SQLite's smallest page, so its smallest database
MAX_NAME_CHARS = 60

_SCHEMA = f"""
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
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

# Parts of queries. `strip_text` is a function that `_connect` defines. The last two end in a WHERE clause, to which
# more conditions can be added with AND.
_PAIRS_WITH_ANSWERS = """
FROM pairs
JOIN prompts ON prompts.id = pairs.prompt
JOIN answers AS x ON x.prompt = pairs.prompt AND x.model = pairs.first
JOIN answers AS y ON y.prompt = pairs.prompt AND y.model = pairs.second
"""
_PAIRS_TO_SHOW = f"{_PAIRS_WITH_ANSWERS} WHERE strip_text(x.text) <> strip_text(y.text)"
_PAIRS_WITH_EQUAL_ANSWERS = f"{_PAIRS_WITH_ANSWERS} WHERE strip_text(x.text) = strip_text(y.text)"

_HOW_TO_RESTORE = (
    "It is left unchanged: restore a copy, or save what can be read with `sqlite3 FILE .recover`, "
    "or name another file with --votes"
)
_REMEDIES = {
    sqlite3.SQLITE_BUSY: "is locked by another program; close that one and try again: no vote is lost",
    sqlite3.SQLITE_FULL: "cannot grow: the disk is full; free some space and try again",
    sqlite3.SQLITE_READONLY: "may not be written; change its permissions, or name another file with --votes",
    sqlite3.SQLITE_CANTOPEN: "cannot be opened; check the folder and its permissions",
    sqlite3.SQLITE_IOERR: "cannot be read or written: the disk reports an error",
    sqlite3.SQLITE_CORRUPT: f"is damaged. {_HOW_TO_RESTORE}",
    sqlite3.SQLITE_NOTADB: f"is not a SQLite file, or its beginning is damaged. {_HOW_TO_RESTORE}",
}


@dataclass(frozen=True)
class Question:
    """Two answers to the same prompt as one annotator sees them: blind."""

    pair: int
    messages: Conversation
    a: str
    b: str


@dataclass(frozen=True)
class Vote:
    """One vote that has not been undone."""

    pair: int
    prompt: int
    annotator: str
    choice: str
    """One of CHOICES."""
    first: str
    """The first model of the pair."""
    second: str
    """The second model of the pair."""
    model_a: str
    """Which of the two was shown as A."""
    score_a: int | None = None
    score_b: int | None = None
    seconds: float | None = None
    """How long the annotator took."""

    @property
    def model_b(self) -> str:
        """The model shown as B."""
        return self.second if self.model_a == self.first else self.first

    @property
    def winner(self) -> str | None:
        """The preferred model; None for a tie, both bad or a skip."""
        if self.choice == "a":
            return self.model_a
        if self.choice == "b":
            return self.model_b
        return None


class VoteDatabase:
    """The SQLite file of a comparison at `path`, made by `create_database`. Threads and processes may share it.

    `timeout_seconds` is how long to wait for another program that is writing. Raises UserError where the file is
    missing, cut off, locked or not a file of votes.
    """

    def __init__(self, path: Path, timeout_seconds: float = 10.0):
        self.path = Path(path)
        self._lock = threading.RLock()  # a snapshot holds it over several reads
        if not self.path.exists():
            raise UserError(f"there is no file of votes {self.path}; name the models to compare and it is made")
        if self.path.stat().st_size < MIN_FILE_BYTES:
            raise UserError(f"{self.path} is too short for a file of votes: it was cut off. {_HOW_TO_RESTORE}")
        self._connect(timeout_seconds)
        self.seed = int(self._read_setting("seed"))
        self.token = self._read_setting("token")

    def _connect(self, timeout_seconds: float) -> None:
        with _user_errors(self.path):
            self._connection = sqlite3.connect(
                self.path, timeout=timeout_seconds, check_same_thread=False, isolation_level=None
            )
            self._connection.create_function("strip_text", 1, str.strip, deterministic=True)
            self._check_file()
            self._connection.execute("PRAGMA synchronous = FULL")
            self._connection.execute("PRAGMA foreign_keys = ON")

    def _check_file(self) -> None:
        """Raise UserError unless the file is one of ours and every page of it is intact."""
        if self._read_pragma("application_id") != APPLICATION_ID:
            raise UserError(f"{self.path} is not a file of votes; name another with --votes")
        version = self._read_pragma("user_version")
        if version != SCHEMA_VERSION:
            raise UserError(
                f"{self.path} is of version {version}, this program writes {SCHEMA_VERSION}; name another file"
            )
        if self._read_pragma("integrity_check") != "ok":
            raise UserError(f"{self.path} is damaged. {_HOW_TO_RESTORE}")

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> "VoteDatabase":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_models(self) -> dict[str, dict[str, Any]]:
        """Return how each model's answers were made (`describe_models`), by the model's name."""
        rows = self._fetch_all("SELECT name, made_with FROM models ORDER BY id")
        return {name: json.loads(made_with) for name, made_with in rows}

    def read_prompts(self) -> list[Conversation]:
        """Return the prompts in the order of their numbers (from 0)."""
        rows = self._fetch_all("SELECT messages FROM prompts ORDER BY id")
        return [json.loads(messages) for (messages,) in rows]

    def list_annotators(self) -> list[str]:
        """Return everyone with a vote that is not undone."""
        rows = self._fetch_all("SELECT DISTINCT annotator FROM votes WHERE undone IS NULL ORDER BY 1")
        return [name for (name,) in rows]

    def find_missing_answers(self) -> dict[str, list[int]]:
        """Return the numbers of the prompts that each model has not answered yet, in the order of their pairs."""
        rows = self._fetch_all(
            """
            SELECT models.name, pairs.prompt FROM pairs JOIN models ON models.id IN (pairs.first, pairs.second)
            LEFT JOIN answers ON answers.prompt = pairs.prompt AND answers.model = models.id
            WHERE answers.text IS NULL GROUP BY models.id, pairs.prompt ORDER BY min(pairs.id)
            """
        )
        missing: dict[str, list[int]] = {}
        for model_name, prompt in rows:
            missing.setdefault(model_name, []).append(prompt)
        return missing

    def add_answers(self, model_name: str, texts: dict[int, str]) -> None:
        """Store a model's answers by the number of the prompt. An answer that exists is not replaced."""
        rows = [(prompt, model_name, text) for prompt, text in texts.items()]
        with self._transaction() as connection:
            connection.executemany(
                "INSERT INTO answers SELECT ?, id, ?3 FROM models WHERE name = ?2 ON CONFLICT DO NOTHING", rows
            )

    def read_next(self, annotator: str) -> tuple[Question | None, dict[str, int]]:
        """Return the next question of this annotator and their progress, as of one moment.

        Read one after the other, an answer that arrives between the two would leave no question and nothing to wait
        for.
        """
        with self._lock, _user_errors(self.path):
            self._connection.execute("BEGIN")  # in WAL mode, reads within a transaction see one state
            try:
                return self.next_question(annotator), self.count_progress(annotator)
            finally:
                self._connection.execute("COMMIT")

    def next_question(self, annotator: str) -> Question | None:
        """Return the next pair for this annotator; None where no pair is left, or none has its answers yet.

        All annotators see the same order, so that the first pairs soon have votes of several people.
        """
        rows = self._fetch_all(
            f"""
            SELECT pairs.id, prompts.messages, x.text, y.text {_PAIRS_TO_SHOW} AND NOT EXISTS (
              SELECT 1 FROM votes WHERE votes.pair = pairs.id AND votes.annotator = ? AND votes.undone IS NULL
            ) ORDER BY pairs.id LIMIT 1
            """,
            annotator,
        )
        if not rows:
            return None

        pair, messages, first_text, second_text = rows[0]
        if is_first_shown_as_a(self.seed, pair, annotator):
            return Question(pair, json.loads(messages), a=first_text, b=second_text)
        return Question(pair, json.loads(messages), a=second_text, b=first_text)

    def record_vote(
        self,
        pair: int,
        annotator: str,
        choice: str,
        score_a: int | None = None,
        score_b: int | None = None,
        seconds: float | None = None,
    ) -> bool:
        """Record a vote; it is on the disk when this returns. False where this annotator has voted on the pair before.

        Raises ValueError for an unknown pair, choice or score.
        """
        if choice not in CHOICES:
            raise ValueError(f"choice is {choice!r}; one of {', '.join(CHOICES)}")
        if any(score is not None and score not in SCORES for score in (score_a, score_b)):
            raise ValueError("a score is a number from 1 to 5")

        with self._transaction() as connection:
            query = f"SELECT first, second {_PAIRS_TO_SHOW} AND pairs.id = ?"
            models = connection.execute(query, (pair,)).fetchone()
            if models is None:
                raise ValueError(f"there is no pair {pair} to vote on")
            first, second = models
            model_a = first if is_first_shown_as_a(self.seed, pair, annotator) else second

            columns = "pair, annotator, choice, model_a, score_a, score_b, seconds, created"
            row = (pair, annotator, choice, model_a, score_a, score_b, seconds, _current_time())
            cursor = connection.execute(
                f"INSERT INTO votes ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", row
            )
            return cursor.rowcount == 1

    def undo_last_vote(self, annotator: str) -> bool:
        """Undo this annotator's last vote (it stays in the file, marked). False where there is none."""
        with self._transaction() as connection:
            cursor = connection.execute(
                """
                UPDATE votes SET undone = ? WHERE id = (
                  SELECT max(id) FROM votes WHERE annotator = ? AND undone IS NULL
                )
                """,
                (_current_time(), annotator),
            )
            return cursor.rowcount == 1

    def count_progress(self, annotator: str) -> dict[str, int]:
        """Count pairs: `done` by this annotator, in `total`, `waiting` for answers, and with `equal` answers.

        Pairs whose two answers are equal are never shown, and not in the total.
        """
        [(pairs, to_show, equal, done)] = self._fetch_all(
            f"""
            SELECT (SELECT count(*) FROM pairs), (SELECT count(*) {_PAIRS_TO_SHOW}),
              (SELECT count(*) {_PAIRS_WITH_EQUAL_ANSWERS}),
              (SELECT count(*) FROM votes WHERE annotator = ? AND undone IS NULL)
            """,
            annotator,
        )
        total = pairs - equal
        return {"done": done, "total": total, "waiting": total - to_show, "equal": equal}

    def read_votes(self) -> list[Vote]:
        """Return every vote that is not undone, in the order of voting."""
        rows = self._fetch_all(
            """
            SELECT pairs.id, pairs.prompt, annotator, choice, f.name, s.name, a.name, score_a, score_b, seconds
            FROM votes JOIN pairs ON pairs.id = votes.pair JOIN models AS f ON f.id = pairs.first
            JOIN models AS s ON s.id = pairs.second JOIN models AS a ON a.id = votes.model_a
            WHERE undone IS NULL ORDER BY votes.id
            """
        )
        return [Vote(*row) for row in rows]

    def read_answer(self, prompt: int, model_name: str) -> str:
        """Return a model's answer to a prompt."""
        query = "SELECT text FROM answers JOIN models ON models.id = model WHERE prompt = ? AND name = ?"
        rows = self._fetch_all(query, prompt, model_name)
        return rows[0][0]

    def _read_setting(self, key: str) -> str:
        rows = self._fetch_all("SELECT value FROM settings WHERE key = ?", key)
        return rows[0][0]

    def _read_pragma(self, name: str) -> Any:
        """Return the first value of the first row that a pragma gives."""
        return self._connection.execute(f"PRAGMA {name}").fetchone()[0]

    def _fetch_all(self, query: str, *values: Any) -> list[tuple]:
        with self._lock, _user_errors(self.path):
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Open one transaction: all of it is written, or nothing."""
        with self._lock, _user_errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")


def create_database(path: Path, plan: ComparisonPlan) -> None:
    """Create the file of a comparison. If another process creates it at the same time, the first one stays.

    The file is written under a temporary name and then linked, so that an incomplete one is always a damaged one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    with _user_errors(path):
        connection = sqlite3.connect(temporary, isolation_level=None)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.executescript(_SCHEMA)
        _insert_plan(connection, plan)
        connection.execute("COMMIT")
        connection.close()
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass  # the other process's file serves as well: whoever opens it compares the plans
    finally:
        temporary.unlink()


def _insert_plan(connection: sqlite3.Connection, plan: ComparisonPlan) -> None:
    settings = [("seed", str(plan.seed)), ("token", os.urandom(16).hex()), ("created", _current_time())]
    connection.executemany("INSERT INTO settings VALUES (?, ?)", settings)

    model_ids = {name: number for number, name in enumerate(plan.models)}
    models = []
    for name, made_with in plan.models.items():
        models.append((model_ids[name], name, json.dumps(made_with)))
    connection.executemany("INSERT INTO models VALUES (?, ?, ?)", models)

    prompts = [(number, json.dumps(messages)) for number, messages in enumerate(plan.prompts)]
    connection.executemany("INSERT INTO prompts VALUES (?, ?)", prompts)

    pairs = []
    for number, (prompt, first, second) in enumerate(plan.pairs):
        pairs.append((number, prompt, model_ids[first], model_ids[second]))
    connection.executemany("INSERT INTO pairs VALUES (?, ?, ?, ?)", pairs)

    answers = []
    for name, texts in plan.answers.items():
        answers += [(prompt, model_ids[name], text) for prompt, text in texts.items()]
    connection.executemany("INSERT INTO answers VALUES (?, ?, ?)", answers)


def is_first_shown_as_a(seed: int, pair: int, annotator: str) -> bool:
    """Whether the pair's first model is shown as A: a coin flip per pair and annotator, the same at every call."""
    return xxhash.xxh3_64_intdigest(json.dumps([seed, pair, annotator]).encode()) & 1 == 0


def normalize_annotator_name(text: Any) -> str:
    """Return a person's name in one normal form (NFC, single spaces). Raises ValueError where it cannot be one."""
    name = " ".join(unicodedata.normalize("NFC", text).split()) if isinstance(text, str) else ""
    if not 1 <= len(name) <= MAX_NAME_CHARS or not name.isprintable():
        raise ValueError(f"a name has 1 to {MAX_NAME_CHARS} characters, all of them visible")
    return name


@contextmanager
def _user_errors(path: Path) -> Iterator[None]:
    """Turn an error of SQLite about the file into a UserError with the remedy."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the kind, the other bytes its details
        if code not in _REMEDIES:
            raise
        raise UserError(f"{path} {_REMEDIES[code]}") from error


def _current_time() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

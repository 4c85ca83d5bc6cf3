"""Dumps of conversations turned into documents, one per thread.

| file | is | a document is |
|--|--|--|
| .xml | Posts.xml of a Stack Exchange dump | a question with its answers, the best first; code kept |
| .jsonl | Reddit's submissions and comments | a submission with the comments on it that the file holds, as a tree |
| .jsonl, .json | rows with `messages`, `conversations`, `dialog`, `turns` ... | a conversation, `name: text` lines |
| .jsonl, .json | rows with `title` and `posts` | a thread of a forum |

What was deleted or removed is left out, and names of people too, except where a row itself is a conversation. Posts of
one thread are brought together in a database in a temporary folder: memory is bounded by its cache of `CACHE_BYTES` and
the largest thread, the disk by twice the texts of the file.
"""

import html
import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from html.parser import HTMLParser
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from xml.parsers import expat

from hf_llm.data.corpus.readers.document import Found
from hf_llm.data.files.read_errors import Faults
from hf_llm.data.files.tabular import COMPRESSED, LINE_BYTES, count_damage, count_damaged_file, file_rows, open_file
from hf_llm.data.files.text_files import cut

if TYPE_CHECKING:
    from hf_llm.data.corpus.sources import Source

CACHE_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20

_GONE = {"[deleted]", "[removed]", "[deleted by user]", "[ removed by reddit ]"}
_TURNS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns", "history", "utterances")
_SPEAKER = ("role", "from", "speaker", "author", "name", "user", "sender")
_SAID = ("content", "value", "text", "body", "message", "utterance")
_ROLES = {"human": "User", "gpt": "Assistant", "user": "User", "assistant": "Assistant", "system": "System",
          "prompter": "User", "chatgpt": "Assistant", "bot": "Assistant"}  # fmt: skip


def read(path: Path, faults: Faults, source: "Source", max_chars: int) -> Iterator[Found]:
    """The threads of a dump. Rows of no known form are counted."""
    kind = Path(path.stem).suffix.lower() if path.suffix.lower() in COMPRESSED else path.suffix.lower()
    with TemporaryDirectory(prefix="hf_llm-") as folder, closing(_Posts(Path(folder) / "posts.db")) as posts:
        if kind == ".xml":
            threads = _stack_exchange(path, faults, posts)
        else:
            threads = _rows(path, faults, posts)
        for found in threads:
            for text in cut(found.text, max_chars):
                yield Found(text, found.url, found.license, found.language, dict(found.about))


class _Posts:
    """Posts by thread, on the disk: added in any order, given back thread by thread."""

    def __init__(self, path: Path):
        self.database = sqlite3.connect(path, isolation_level=None)
        self.database.execute(f"PRAGMA cache_size = -{CACHE_BYTES >> 10}")
        self.database.execute("PRAGMA journal_mode = OFF")  # a task that is killed begins again in a new folder
        self.database.execute("PRAGMA synchronous = OFF")
        self.database.execute("CREATE TABLE posts (thread TEXT, number INTEGER, post TEXT)")
        self.database.execute("BEGIN")
        self.count = 0

    def add(self, thread: str, post: dict) -> None:
        self.count += 1
        self.database.execute("INSERT INTO posts VALUES (?, ?, ?)", (thread, self.count, json.dumps(post)))

    def threads(self) -> Iterator[list[dict]]:
        rows = self.database.execute("SELECT thread, post FROM posts ORDER BY thread, number")  # merged on the disk
        for _, group in groupby(rows, key=lambda row: row[0]):
            yield [json.loads(post) for _, post in group]

    def close(self) -> None:
        self.database.close()


def _rows(path: Path, faults: Faults, posts: _Posts) -> Iterator[Found]:
    """Conversations as they come, then the threads of what belongs together."""
    for number, row in file_rows(path, faults):
        if isinstance(row.get("body"), str) and "link_id" in row:
            posts.add(str(row["link_id"]).removeprefix("t3_"), _reddit_post(row))
        elif isinstance(row.get("title"), str) and "selftext" in row:
            posts.add(str(row.get("id", f"line {number}")), _reddit_post(row))
        elif (text := _conversation(row)) is not None:
            if text:
                url = row.get("url")
                yield Found(text, url=url if isinstance(url, str) else "", about={"line": number})
        else:
            faults.drop("no known form of a discussion", f"{path}, line {number}", ", ".join(map(str, row)))
    for thread in posts.threads():
        if found := _reddit_thread(thread):
            yield found


def _reddit_post(row: dict) -> dict:
    said = row["body"] if "link_id" in row else row["selftext"]
    said = said if isinstance(said, str) else ""
    return {
        "id": str(row.get("id", "")),
        "title": html.unescape(row["title"]) if isinstance(row.get("title"), str) and "link_id" not in row else None,
        "text": "" if said.strip().lower() in _GONE else html.unescape(said).strip(),
        "parent": str(row.get("parent_id", "")).removeprefix("t1_"),
        "created": _number(row.get("created_utc")),
        "subreddit": str(row.get("subreddit") or ""),
        "url": str(row.get("permalink") or ""),
    }


def _reddit_thread(thread: list[dict]) -> Found | None:
    """The submission, then the comments in the order of the tree. Answers to what is gone stay in its place."""
    submission = next((post for post in thread if post["title"] is not None), None)
    comments = sorted(
        (post for post in thread if post["title"] is None), key=lambda post: (post["created"], post["id"])
    )
    known = {post["id"] for post in comments}
    answers: dict[str, list[dict]] = {}
    for post in comments:
        answers.setdefault(post["parent"] if post["parent"] in known else "", []).append(post)
    texts, left = [], [*reversed(answers.pop("", []))]
    while left:
        post = left.pop()
        texts.append(post["text"])
        left += reversed(answers.pop(post["id"], []))
    if submission and submission["title"].strip().lower() not in _GONE:
        texts = [submission["title"].strip(), submission["text"], *texts]
    text = "\n\n".join(filter(None, texts))
    if not text:
        return None
    first = submission or comments[0]
    url = f"https://www.reddit.com{first['url']}" if first["url"].startswith("/") else first["url"]
    about = {"subreddit": first["subreddit"], "comments": sum(bool(post["text"]) for post in comments)}
    return Found(text, url=url, about={key: value for key, value in about.items() if value})


def _number(value: object) -> int:
    """A number as dumps write it, in quotes or not; 0 where it is none."""
    try:
        return int(float(value or 0))
    except (TypeError, ValueError, OverflowError):
        return 0


def _conversation(row: dict) -> str | None:
    """The `name: text` lines of a chat, or a thread's posts; empty where nothing is said, None for another form."""
    turns = next((row[key] for key in _TURNS if isinstance(row.get(key), list)), None)
    if turns is not None:
        lines = [line for turn in turns if (line := _turn(turn))]
        return "\n\n".join(lines) if lines or not turns else None
    posts = next((row[key] for key in ("posts", "comments", "replies") if isinstance(row.get(key), list)), None)
    if posts is None:
        return None
    said = [post if isinstance(post, str) else _first(post, _SAID) for post in posts if isinstance(post, str | dict)]
    opening = [row.get("title"), row.get("text") or row.get("body")]
    return "\n\n".join(text.strip() for text in [*opening, *said] if isinstance(text, str) and _is_said(text))


def _turn(turn: object) -> str:
    if isinstance(turn, str):
        return turn.strip() if _is_said(turn) else ""
    if isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(part, str) for part in turn):
        turn = {"name": turn[0], "text": turn[1]}
    if not isinstance(turn, dict):
        return ""
    if isinstance(turn.get("content"), list):  # [{"type": "text", "text": "Hi"}]: OpenAI's parts
        parts = [_first(part, _SAID) for part in turn["content"] if isinstance(part, dict)]
        turn = {**turn, "content": "\n".join(filter(None, parts))}
    said, name = _first(turn, _SAID), _first(turn, _SPEAKER)
    if not said:  # {"user": "Hello", "bot": "Hi"}
        pairs = [(_ROLES[key], text) for key, text in turn.items() if key in _ROLES and isinstance(text, str)]
        return "\n\n".join(f"{name}: {text.strip()}" for name, text in pairs)
    if not _is_said(said):
        return ""
    return f"{_ROLES.get(name.lower(), name)}: {said.strip()}" if name else said.strip()


def _first(row: dict, keys: tuple[str, ...]) -> str:
    return next((row[key] for key in keys if isinstance(row.get(key), str)), "")


def _is_said(text: str) -> bool:
    return bool(text.strip()) and text.strip().lower() not in _GONE


def _stack_exchange(path: Path, faults: Faults, posts: _Posts) -> Iterator[Found]:
    for post in _post_rows(path, faults):
        kind, thread = post.get("PostTypeId"), post.get("Id") if post.get("PostTypeId") == "1" else post.get("ParentId")
        if kind in ("1", "2") and thread and post.get("Body"):  # others are wikis of tags and notes of elections
            posts.add(thread, post)
    for thread in posts.threads():
        if found := _question(thread):
            yield found


def _post_rows(path: Path, faults: Faults) -> Iterator[dict[str, str]]:
    """The attributes of every <row>, streamed. A document type, and with it every entity, is refused."""
    rows: list[dict[str, str]] = []
    held = 0  # bytes since the last row: the parser keeps them
    parser = expat.ParserCreate()

    def started(name: str, attributes: dict[str, str]) -> None:
        if name == "row":
            faults.records += 1
            rows.append(attributes)

    def refused(*_: Any) -> None:
        raise ValueError("it declares a document type; entities are not expanded")

    parser.StartElementHandler = started
    parser.StartDoctypeDeclHandler = refused
    try:
        with count_damage(path, faults), open_file(path) as file:
            while chunk := file.read(CHUNK_BYTES):
                parser.Parse(chunk)
                held = 0 if rows else held + len(chunk)
                if held > LINE_BYTES:
                    raise ValueError(f"no row ends within {LINE_BYTES >> 20} MiB")
                yield from rows
                rows.clear()
            parser.Parse(b"", True)
    except (expat.ExpatError, ValueError) as error:
        yield from rows
        count_damaged_file(path, error, faults)


def _question(thread: list[dict[str, str]]) -> Found | None:
    """A question and its answers: the accepted one, then by score. Answers alone are none of a document."""
    question = next((post for post in thread if post["PostTypeId"] == "1"), None)
    if question is None:
        return None
    accepted = question.get("AcceptedAnswerId")
    answers = [post for post in thread if post["PostTypeId"] == "2"]
    answers.sort(key=lambda post: (post.get("Id") != accepted, -_number(post.get("Score")), _number(post.get("Id"))))
    bodies = [html_text(post["Body"]) for post in [question, *answers]]
    text = "\n\n".join(filter(None, [question.get("Title", "").strip(), *bodies]))
    tags = re.findall(r"[^<>|]+", question.get("Tags", ""))
    about = {"tags": tags, "score": _number(question.get("Score")), "answers": len(answers)}
    licenses = sorted(filter(None, map(_license, [question, *answers])))
    return Found(text, license=licenses[-1] if licenses else None, about=about)


def _license(post: dict[str, str]) -> str | None:
    """The licence a post states, or the one of its date (https://stackoverflow.com/help/licensing).

    Of a thread the newest holds: each version allows what is made from it to go under a later one.
    """
    if post.get("ContentLicense"):
        return post["ContentLicense"].strip().lower().replace(" ", "-")
    try:
        date = datetime.fromisoformat(post["CreationDate"]).replace(tzinfo=UTC)
    except (KeyError, ValueError):
        return None
    if date < datetime(2011, 4, 8, tzinfo=UTC):
        return "cc-by-sa-2.5"
    return "cc-by-sa-3.0" if date < datetime(2018, 5, 2, tzinfo=UTC) else "cc-by-sa-4.0"


class _Text(HTMLParser):
    """The text of a post: paragraphs, lists and quotations as lines, code between fences and back quotes."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.out: list[str] = []
        self.fenced = 0
        self.hidden = 0

    def handle_starttag(self, tag: str, attributes: list) -> None:
        if tag == "pre":
            self.out.append("\n\n```\n")
            self.fenced += 1
        elif tag == "code" and not self.fenced:
            self.out.append("`")
        elif tag == "li":
            self.out.append("\n- ")
        elif tag == "br":
            self.out.append("\n")
        elif tag in ("script", "style"):
            self.hidden += 1
        elif tag in ("p", "h1", "h2", "h3", "h4", "blockquote", "ul", "ol", "hr", "div", "table", "tr"):
            self.out += [] if self.out[-1:] == ["\n- "] else ["\n\n"]

    def handle_endtag(self, tag: str) -> None:
        if tag == "pre" and self.fenced:
            self.fenced -= 1
            self.out.append("```\n\n" if "".join(self.out[-1:]).endswith("\n") else "\n```\n\n")
        elif tag == "code" and not self.fenced:
            self.out.append("`")
        elif tag in ("script", "style"):
            self.hidden = max(0, self.hidden - 1)
        elif tag in ("p", "h1", "h2", "h3", "h4", "blockquote", "ul", "ol"):
            self.out.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.out.append(data if self.fenced else re.sub(r"\s+", " ", data))


def html_text(body: str) -> str:
    """The text of the HTML of a post."""
    parser = _Text()
    parser.feed(body)
    parser.close()
    parts = re.split(r"(```\n.*?\n```)", "".join(parser.out), flags=re.DOTALL)
    for i in range(0, len(parts), 2):  # what is not between fences
        parts[i] = re.sub(r"[ \t]*\n[ \t]*", "\n", parts[i])
        parts[i] = re.sub(r"\n{3,}", "\n\n", parts[i])
    return re.sub(r"\n{3,}(?=```)|(?<=```)\n{3,}", "\n\n", "".join(parts)).strip()

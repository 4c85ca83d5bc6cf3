"""Turn dumps of conversations into documents, one per thread.

| file | is | a document is |
|--|--|--|
| .xml | Posts.xml of a Stack Exchange dump | a question with its answers, the best first; code kept |
| .jsonl | Reddit's submissions and comments | a submission with the comments on it that the file holds, as a tree |
| .jsonl, .json | rows with `messages`, `conversations`, `dialog`, `turns` ... | a conversation, `name: text` lines |
| .jsonl, .json | rows with `title` and `posts` | a thread of a forum |

What was deleted or removed is left out, and so are names of people, except where a row itself is a conversation. Posts
of one thread are brought together in a database in a temporary folder: memory is bounded by its cache of `CACHE_BYTES`
and the largest thread, the disk by twice the texts of the file.
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

from hf_llm.core.surrogates import replace_lone_surrogates
from hf_llm.data.corpus.readers.document import RawDocument
from hf_llm.data.files.compressed import content_suffix, count_damage, count_damaged_file, open_file
from hf_llm.data.files.read_errors import NO_TEXT, ReadErrors
from hf_llm.data.files.tabular import LINE_BYTES, read_rows
from hf_llm.data.files.text_files import split_text

if TYPE_CHECKING:
    from hf_llm.data.corpus.config import Source

CACHE_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20

_DELETED_TEXTS = {"[deleted]", "[removed]", "[deleted by user]", "[ removed by reddit ]"}
_TURN_COLUMNS = ("messages", "conversations", "conversation", "dialog", "dialogue", "turns", "history", "utterances")
_POST_COLUMNS = ("posts", "comments", "replies")
_SPEAKER_KEYS = ("role", "from", "speaker", "author", "name", "user", "sender")
_TEXT_KEYS = ("content", "value", "text", "body", "message", "utterance")
_ROLES = {"human": "User", "gpt": "Assistant", "user": "User", "assistant": "Assistant", "system": "System",
          "prompter": "User", "chatgpt": "Assistant", "bot": "Assistant"}  # fmt: skip

# Values of PostTypeId in Posts.xml; others are wikis of tags and notes of elections.
_QUESTION = "1"
_ANSWER = "2"


def read(path: Path, errors: ReadErrors, source: "Source", max_chars: int) -> Iterator[RawDocument]:
    """Yield the threads of a dump. Rows of no known form are counted."""
    with TemporaryDirectory(prefix="hf_llm-") as folder, closing(_PostStore(Path(folder) / "posts.db")) as posts:
        if content_suffix(path) == ".xml":
            threads = _read_stack_exchange(path, errors, posts)
        else:
            threads = _read_rows(path, errors, posts)
        for thread in threads:
            records = thread.records
            for text in split_text(thread.text, max_chars):
                yield RawDocument(text, thread.url, thread.license, thread.language, dict(thread.about), records)
                records = 0  # of the further pieces
            if records:
                errors.leave_out(NO_TEXT, str(path), records)


class _PostStore:
    """Posts by thread, on the disk: added in any order, given back thread by thread."""

    def __init__(self, path: Path):
        self.database = sqlite3.connect(path, isolation_level=None)
        self.database.execute(f"PRAGMA cache_size = -{CACHE_BYTES >> 10}")
        self.database.execute("PRAGMA journal_mode = OFF")  # a task that is killed begins again in a new folder
        self.database.execute("PRAGMA synchronous = OFF")
        self.database.execute("CREATE TABLE posts (thread TEXT, number INTEGER, post TEXT)")
        self.database.execute("BEGIN")
        self.count = 0

    def add_post(self, thread: str, post: dict) -> None:
        self.count += 1
        self.database.execute(
            "INSERT INTO posts VALUES (?, ?, ?)", (replace_lone_surrogates(thread), self.count, json.dumps(post))
        )

    def read_threads(self) -> Iterator[list[dict]]:
        rows = self.database.execute("SELECT thread, post FROM posts ORDER BY thread, number")  # merged on the disk
        for _, group in groupby(rows, key=lambda row: row[0]):
            yield [json.loads(post) for _, post in group]

    def close(self) -> None:
        self.database.close()


def _read_rows(path: Path, errors: ReadErrors, posts: _PostStore) -> Iterator[RawDocument]:
    """Yield the conversations in the order of the file, then the threads of Reddit."""
    for number, row in read_rows(path, errors):
        if isinstance(row.get("body"), str) and "link_id" in row:
            thread = str(row["link_id"]).removeprefix("t3_")
            posts.add_post(thread, _convert_reddit_post(row, None, row["body"]))
            continue
        if isinstance(row.get("title"), str) and "selftext" in row:
            thread = str(row.get("id", f"line {number}"))
            posts.add_post(thread, _convert_reddit_post(row, html.unescape(row["title"]), row["selftext"]))
            continue

        text = _join_conversation(row)
        if text is None:
            columns = ", ".join(map(str, row))
            errors.drop_record("no known form of a discussion", f"{path}, line {number}", columns)
        elif text:
            url = row.get("url")
            yield RawDocument(text, url=url if isinstance(url, str) else "", about={"line": number})
        else:
            errors.leave_out(NO_TEXT, f"{path}, line {number}")

    for thread_posts in posts.read_threads():
        document = _join_reddit_thread(thread_posts)
        unused = len(thread_posts) - (document.records if document else 0)
        if unused:
            errors.leave_out("deleted, empty or repeated post", f"{path}, post {thread_posts[0]['id']}", unused)
        if document:
            yield document


def _convert_reddit_post(row: dict, title: str | None, text: object) -> dict:
    """Return what is needed of a submission, or of a comment, whose title is None."""
    return {
        "id": str(row.get("id", "")),
        "title": title,
        "text": _clean_reddit_text(text),
        "parent": str(row.get("parent_id", "")).removeprefix("t1_"),
        "created": _parse_number(row.get("created_utc")),
        "subreddit": str(row.get("subreddit") or ""),
        "url": str(row.get("permalink") or ""),
    }


def _clean_reddit_text(text: object) -> str:
    """Return the text of a post; empty if it was deleted or is not a string."""
    if not isinstance(text, str) or _is_deleted(text):
        return ""
    return html.unescape(text).strip()


def _join_reddit_thread(thread: list[dict]) -> RawDocument | None:
    """Join the submission and the comments, in the order of their tree. Replies to what was deleted stay in its place.

    Returns None if there is no text.
    """
    submission = next((post for post in thread if post["title"] is not None), None)
    comments = [post for post in thread if post["title"] is None]
    comments.sort(key=lambda post: (post["created"], post["id"]))
    texts = [comment["text"] for comment in _order_as_tree(comments) if comment["text"]]
    used = len(texts)
    if submission and not _is_deleted(submission["title"]):
        texts = [submission["title"].strip(), submission["text"], *texts]
        used += 1
    text = "\n\n".join(filter(None, texts))
    if not text:
        return None

    first = submission or comments[0]
    url = first["url"]
    if url.startswith("/"):
        url = f"https://www.reddit.com{url}"
    comment_count = sum(bool(comment["text"]) for comment in comments)
    about = {"subreddit": first["subreddit"], "comments": comment_count}
    about = {key: value for key, value in about.items() if value}
    return RawDocument(text, url=url, about=about, records=used)


def _order_as_tree(comments: list[dict]) -> list[dict]:
    """Order comments so that each is followed by its replies. One whose parent is not among them is at the top.

    Comments that are only replies to one another, in a circle, are left out.
    """
    ids = {comment["id"] for comment in comments}
    replies: dict[str, list[dict]] = {}
    for comment in comments:
        parent = comment["parent"] if comment["parent"] in ids else ""
        replies.setdefault(parent, []).append(comment)

    ordered = []
    stack = replies.pop("", [])[::-1]
    while stack:
        comment = stack.pop()
        ordered.append(comment)
        stack += reversed(replies.pop(comment["id"], []))
    return ordered


def _parse_number(value: Any) -> int:
    """Parse a number as dumps write it, in quotes or not; 0 if it is not one."""
    try:
        return int(float(value or 0))
    except (TypeError, ValueError, OverflowError):
        return 0


def _join_conversation(row: dict) -> str | None:
    """Join a chat to `name: text` lines, or the posts of a thread. Empty if there is no text, None for another form."""
    turns = _first_list(row, _TURN_COLUMNS)
    if turns is not None:
        lines = [line for line in map(_format_turn, turns) if line]
        if turns and not lines:
            return None
        return "\n\n".join(lines)

    posts = _first_list(row, _POST_COLUMNS)
    if posts is None:
        return None
    texts = [row.get("title"), row.get("text") or row.get("body")]
    for post in posts:
        if isinstance(post, str):
            texts.append(post)
        elif isinstance(post, dict):
            texts.append(_first_string(post, _TEXT_KEYS))
    return "\n\n".join(text.strip() for text in texts if isinstance(text, str) and _has_text(text))


def _format_turn(turn: object) -> str:
    """Format a turn of a chat as `name: text`; empty if it has no text."""
    if isinstance(turn, str):
        return turn.strip() if _has_text(turn) else ""
    if isinstance(turn, list | tuple) and len(turn) == 2 and all(isinstance(part, str) for part in turn):
        name, text = turn
        return _format_line(name, text)
    if not isinstance(turn, dict):
        return ""

    if isinstance(turn.get("content"), list):
        turn = {**turn, "content": _join_content_parts(turn["content"])}
    text = _first_string(turn, _TEXT_KEYS)
    if not text:
        return _format_pair(turn)
    return _format_line(_first_string(turn, _SPEAKER_KEYS), text)


def _format_line(name: str, text: str) -> str:
    if not _has_text(text):
        return ""
    if not name:
        return text.strip()
    return f"{_ROLES.get(name.lower(), name)}: {text.strip()}"


def _format_pair(turn: dict) -> str:
    """Format a question and its answer in one row: `{"user": "Hello", "bot": "Hi"}`."""
    lines = []
    for key, text in turn.items():
        if key in _ROLES and isinstance(text, str):
            lines.append(f"{_ROLES[key]}: {text.strip()}")
    return "\n\n".join(lines)


def _join_content_parts(parts: list) -> str:
    """Join the texts of a message in OpenAI's parts: `[{"type": "text", "text": "Hi"}]`."""
    texts = [_first_string(part, _TEXT_KEYS) for part in parts if isinstance(part, dict)]
    return "\n".join(filter(None, texts))


def _first_string(row: dict, keys: tuple[str, ...]) -> str:
    return next((row[key] for key in keys if isinstance(row.get(key), str)), "")


def _first_list(row: dict, keys: tuple[str, ...]) -> list | None:
    return next((row[key] for key in keys if isinstance(row.get(key), list)), None)


def _has_text(text: str) -> bool:
    return bool(text.strip()) and not _is_deleted(text)


def _is_deleted(text: str) -> bool:
    return text.strip().lower() in _DELETED_TEXTS


def _read_stack_exchange(path: Path, errors: ReadErrors, posts: _PostStore) -> Iterator[RawDocument]:
    for post in _read_post_rows(path, errors):
        post_type = post.get("PostTypeId")
        thread = post.get("Id") if post_type == _QUESTION else post.get("ParentId")
        where = f"{path}, post {post.get('Id')}"
        if post_type not in (_QUESTION, _ANSWER) or not thread:
            errors.leave_out("post that is neither question nor answer", where)
        elif not post.get("Body"):
            errors.leave_out(NO_TEXT, where)
        else:
            posts.add_post(thread, post)
    for thread_posts in posts.read_threads():
        document = _join_question(thread_posts)
        unused = len(thread_posts) - (document.records if document else 0)
        if unused:
            reason = "repeated question" if document else "answer without its question"
            errors.leave_out(reason, f"{path}, post {thread_posts[0].get('Id')}", unused)
        if document:
            yield document


def _read_post_rows(path: Path, errors: ReadErrors) -> Iterator[dict[str, str]]:
    """Yield the attributes of every <row>, streamed. A document type, and with it every entity, is refused."""
    rows: list[dict[str, str]] = []
    bytes_since_row = 0  # the parser keeps them
    parser = expat.ParserCreate()

    def start_element(name: str, attributes: dict[str, str]) -> None:
        if name == "row":
            errors.records += 1
            rows.append(attributes)

    def refuse_document_type(*_: Any) -> None:
        raise ValueError("it declares a document type; entities are not expanded")

    parser.StartElementHandler = start_element
    parser.StartDoctypeDeclHandler = refuse_document_type
    try:
        with count_damage(path, errors), open_file(path) as file:
            while chunk := file.read(CHUNK_BYTES):
                parser.Parse(chunk)
                bytes_since_row = 0 if rows else bytes_since_row + len(chunk)
                if bytes_since_row > LINE_BYTES:
                    raise ValueError(f"no row ends within {LINE_BYTES >> 20} MiB")
                yield from rows
                rows.clear()
            parser.Parse(b"", True)
    except (expat.ExpatError, ValueError) as error:
        yield from rows
        count_damaged_file(path, error, errors)


def _join_question(thread: list[dict[str, str]]) -> RawDocument | None:
    """Join a question and its answers: the accepted one, then by score. None for answers without their question."""
    question = next((post for post in thread if post["PostTypeId"] == _QUESTION), None)
    if question is None:
        return None

    def precedence(answer: dict[str, str]) -> tuple[bool, int, int]:
        is_accepted = answer.get("Id") == question.get("AcceptedAnswerId")
        return not is_accepted, -_parse_number(answer.get("Score")), _parse_number(answer.get("Id"))

    answers = [post for post in thread if post["PostTypeId"] == _ANSWER]
    answers.sort(key=precedence)
    posts = [question, *answers]
    title = question.get("Title", "").strip()
    bodies = [convert_html(post["Body"]) for post in posts]
    text = "\n\n".join(filter(None, [title, *bodies]))

    tags = re.findall(r"[^<>|]+", question.get("Tags", ""))
    about = {"tags": tags, "score": _parse_number(question.get("Score")), "answers": len(answers)}
    return RawDocument(text, license=_newest_license(posts), about=about, records=len(posts))


def _newest_license(posts: list[dict[str, str]]) -> str | None:
    """Return the newest licence of a thread, which applies: each version allows adaptations under a later one."""
    licenses = [_find_license(post) for post in posts]
    return max(filter(None, licenses), default=None)


def _find_license(post: dict[str, str]) -> str | None:
    """Return the licence a post states, or the one of its date (https://stackoverflow.com/help/licensing)."""
    if post.get("ContentLicense"):
        return post["ContentLicense"].strip().lower().replace(" ", "-")
    try:
        date = datetime.fromisoformat(post["CreationDate"]).replace(tzinfo=UTC)
    except (KeyError, ValueError):
        return None
    if date < datetime(2011, 4, 8, tzinfo=UTC):
        return "cc-by-sa-2.5"
    if date < datetime(2018, 5, 2, tzinfo=UTC):
        return "cc-by-sa-3.0"
    return "cc-by-sa-4.0"


class _PostParser(HTMLParser):
    """Collects the text of a post: paragraphs, lists and quotations as lines, code between fences and back quotes.

    A row of a table is a line, with tabs between its cells.
    """

    PARAGRAPH_TAGS = ("p", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "ul", "ol", "table")
    BLOCK_TAGS = (*PARAGRAPH_TAGS, "hr", "div", "section", "article", "body", "dl", "figure")  # start a new paragraph
    LINE_TAGS = ("br", "tr", "dt", "dd", "figcaption")  # start a new line
    CELL_TAGS = ("td", "th")
    HIDDEN_TAGS = ("script", "style", "title")

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self.fence_depth = 0
        self.hidden_depth = 0
        self.cell_depth = 0

    def handle_starttag(self, tag: str, attributes: list) -> None:
        if tag == "pre":
            self.parts.append("\n\n```\n")
            self.fence_depth += 1
        elif tag == "code" and not self.fence_depth:
            self.parts.append("`")
        elif tag == "li":
            self.parts.append("\n- ")
        elif tag in self.LINE_TAGS:
            self.parts.append("\n")
        elif tag in self.CELL_TAGS:
            self.parts.append("\t")
            self.cell_depth += 1
        elif tag in self.HIDDEN_TAGS:
            self.hidden_depth += 1
        elif tag in self.BLOCK_TAGS and self.cell_depth:
            self.parts.append(" ")  # a row stays on one line
        elif tag in self.BLOCK_TAGS:
            opens_list_item = self.parts[-1:] == ["\n- "]
            if not opens_list_item:
                self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        if tag == "pre" and self.fence_depth:
            self.fence_depth -= 1
            ends_in_newline = bool(self.parts) and self.parts[-1].endswith("\n")
            self.parts.append("```\n\n" if ends_in_newline else "\n```\n\n")
        elif tag == "code" and not self.fence_depth:
            self.parts.append("`")
        elif tag in self.HIDDEN_TAGS:
            self.hidden_depth = max(0, self.hidden_depth - 1)
        elif tag in self.CELL_TAGS:
            self.cell_depth = max(0, self.cell_depth - 1)
        elif tag in self.PARAGRAPH_TAGS:
            self.parts.append(" " if self.cell_depth else "\n\n")

    def handle_data(self, data: str) -> None:
        if self.hidden_depth:
            return
        self.parts.append(data if self.fence_depth else re.sub(r"\s+", " ", data))


def convert_html(body: str) -> str:
    """Convert the HTML of a post to text."""
    parser = _PostParser()
    parser.feed(body)
    parser.close()

    # Blank lines are removed outside of the fences, which are every second part.
    parts = re.split(r"(```\n.*?\n```)", "".join(parser.parts), flags=re.DOTALL)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"[ \t]*\n[ \t]*", "\n", parts[i])
        parts[i] = re.sub(r" *\t *", "\t", parts[i])
        parts[i] = re.sub(r"\n{3,}", "\n\n", parts[i])
    return re.sub(r"\n{3,}(?=```)|(?<=```)\n{3,}", "\n\n", "".join(parts)).strip()

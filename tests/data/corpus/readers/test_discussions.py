import bz2
import json
import os
from pathlib import Path
from xml.sax.saxutils import quoteattr

import pytest

from hf_llm.data.corpus.readers.discussions import convert_html, read
from hf_llm.data.files.read_errors import ReadErrors


def read_discussions(path, max_chars=100_000):
    errors = ReadErrors()
    return list(read(path, errors, None, max_chars)), errors


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def submission(name, title, text, **more):
    return {"id": name, "title": title, "selftext": text, "created_utc": 1, "subreddit": "books", "score": 5,
            "permalink": f"/r/books/comments/{name}/", **more}  # fmt: skip


def comment(name, parent, text, created, link="s1"):
    return {"id": name, "link_id": f"t3_{link}", "parent_id": parent, "body": text, "created_utc": str(created),
            "author": "somebody", "subreddit": "books"}  # fmt: skip


def test_comments_of_reddit_join_their_submission_as_a_tree_wherever_they_stand(tmp_path):
    rows = [
        comment("c3", "t1_c1", "answer to the first", 30),
        submission("s1", "Which book?", "I look for &amp; want one."),
        comment("c2", "t3_s1", "second", 20),
        submission("s2", "Alone", "[removed]"),
        comment("c1", "t3_s1", "first &gt; best", 10),
        comment("c4", "t1_c5", "answer to what is gone", 40),
        comment("c5", "t3_s1", "[deleted]", 15),
        comment("c6", "t1_unknown", "answer to what the file does not hold", 50),
        comment("x1", "t3_s3", "of another thread", 60, link="s3"),
    ]
    threads, errors = read_discussions(write_rows(tmp_path / "a.jsonl", rows))
    assert [thread.text.split("\n\n") for thread in threads] == [
        ["Which book?", "I look for & want one.", "first > best", "answer to the first", "answer to what is gone",
         "second", "answer to what the file does not hold"],
        ["Alone"],
        ["of another thread"],
    ]  # fmt: skip
    assert threads[0].url == "https://www.reddit.com/r/books/comments/s1/"
    assert threads[0].about == {"subreddit": "books", "comments": 5}
    assert "somebody" not in threads[0].text
    assert errors.records == 9 and not errors.dropped


def test_a_thread_of_which_all_is_deleted_is_no_document_and_loops_end(tmp_path):
    rows = [submission("s1", "[deleted by user]", "[removed]"), comment("c1", "t3_s1", "[removed]", 1)]
    assert read_discussions(write_rows(tmp_path / "a.jsonl", rows))[0] == []
    loop = [comment("c1", "t1_c2", "a", 1), comment("c2", "t1_c1", "b", 2), comment("c3", "t3_s1", "c", 3)]
    assert [thread.text for thread in read_discussions(write_rows(tmp_path / "b.jsonl", loop))[0]] == ["c"]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Hello! "}]},
         "User: Hi\n\nAssistant: Hello!"),
        ({"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]},
         "User: Hi\n\nAssistant: Hello!"),
        ({"turns": [{"speaker": "Ann", "text": "Hi"}, {"speaker": "Bob", "text": "[deleted]"}]}, "Ann: Hi"),
        ({"dialog": ["Hi", "Hello!", ""]}, "Hi\n\nHello!"),
        ({"turns": [["Ann", "Hi"], ["Bob", "Hello!"]]}, "Ann: Hi\n\nBob: Hello!"),
        ({"history": [{"user": "Hi", "bot": "Hello!"}]}, "User: Hi\n\nAssistant: Hello!"),
        ({"title": "Help", "posts": [{"author": "a", "text": "It is broken."}, {"author": "b", "body": "Mend it."}]},
         "Help\n\nIt is broken.\n\nMend it."),
    ],
)  # fmt: skip
def test_a_row_that_is_a_conversation_becomes_lines(tmp_path, row, text):
    threads, errors = read_discussions(write_rows(tmp_path / "a.jsonl", [row]))
    assert [thread.text for thread in threads] == [text] and not errors.dropped


def test_a_row_of_no_known_form_is_counted(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "Hi"}]}, {"text": "no discussion"}, {"messages": [{"a": 1}]}]
    threads, errors = read_discussions(write_rows(tmp_path / "a.jsonl", rows))
    assert len(threads) == 1 and errors.dropped == {"no known form of a discussion": 2}


def posts_xml(posts):
    rows = (
        "  <row " + " ".join(f"{key}={quoteattr(str(value))}" for key, value in post.items()) + " />" for post in posts
    )
    return "\ufeff<?xml version='1.0' encoding='utf-8'?>\n<posts>\n" + "\n".join(rows) + "\n</posts>"


QUESTION = {"Id": 7, "PostTypeId": 1, "AcceptedAnswerId": 9, "Score": 12, "Title": "How to <sort> a list?",
            "Tags": "<python><list>", "CreationDate": "2010-01-01T00:00:00.000",
            "Body": "<p>I have <code>x = [2, 1]</code> &amp; want\nit sorted.</p>\n<pre><code>print(x)\n"
                    "  # &lt;here&gt;\n</code></pre>\n<ul>\n<li>fast</li>\n<li><p>stable</p></li>\n</ul>"}  # fmt: skip
ANSWERS = [
    {"Id": 8, "PostTypeId": 2, "ParentId": 7, "Score": 50, "CreationDate": "2012-05-05", "Body": "<p>Most votes.</p>"},
    {"Id": 9, "PostTypeId": 2, "ParentId": 7, "Score": 3, "CreationDate": "2010-01-02", "Body": "<p>Accepted.</p>"},
    {"Id": 10, "PostTypeId": 2, "ParentId": 7, "Score": -1, "CreationDate": "2010-01-02", "Body": "<p>Worst.</p>"},
]
OTHERS = [{"Id": 1, "PostTypeId": 5, "Body": "<p>about a tag</p>"}, {"Id": 2, "PostTypeId": 2, "ParentId": 99,
          "Body": "<p>an answer without its question</p>"}]  # fmt: skip


@pytest.mark.parametrize("order", [1, -1])
def test_a_question_and_its_answers_are_one_document(tmp_path, order):
    (tmp_path / "Posts.xml").write_text(posts_xml([*OTHERS, QUESTION, *ANSWERS][::order]), encoding="utf-8")
    (thread,), errors = read_discussions(tmp_path / "Posts.xml")
    assert thread.text == (
        "How to <sort> a list?\n\nI have `x = [2, 1]` & want it sorted.\n\n```\nprint(x)\n  # <here>\n```\n\n"
        "- fast\n- stable\n\nAccepted.\n\nMost votes.\n\nWorst."
    )
    assert thread.about == {"tags": ["python", "list"], "score": 12, "answers": 3}
    assert thread.license == "cc-by-sa-3.0"  # of the newest of its posts
    assert errors.records == 6 and not errors.dropped


@pytest.mark.parametrize(
    ("attributes", "license"),
    [
        ({"CreationDate": "2011-04-07T23:59:59.999"}, "cc-by-sa-2.5"),
        ({"CreationDate": "2011-04-08T00:00:00.000"}, "cc-by-sa-3.0"),
        ({"CreationDate": "2018-05-02T00:00:00.000"}, "cc-by-sa-4.0"),
        ({"CreationDate": "2018-06-01", "ContentLicense": "CC BY-SA 3.0"}, "cc-by-sa-3.0"),
        ({"CreationDate": "never"}, None),
    ],
)
def test_the_licence_of_a_post_is_what_it_states_or_that_of_its_date(tmp_path, attributes, license):
    post = {"Id": 1, "PostTypeId": 1, "Title": "T", "Body": "<p>B</p>", **attributes}
    (tmp_path / "Posts.xml").write_text(posts_xml([post]), encoding="utf-8")
    assert read_discussions(tmp_path / "Posts.xml")[0][0].license == license


def test_a_truncated_dump_gives_what_stands_before_the_cut(tmp_path):
    many = [{**QUESTION, "Id": i, "Title": f"Question {i}?"} for i in range(1, 2000)]
    text = posts_xml(many)
    (tmp_path / "Posts.xml").write_text(text[: len(text) // 2], encoding="utf-8")
    threads, errors = read_discussions(tmp_path / "Posts.xml")
    assert 900 < len(threads) < 1100 and errors.dropped == {"damaged file": 1}
    (tmp_path / "Posts.xml.bz2").write_bytes(bz2.compress(text.encode())[:-100])
    assert read_discussions(tmp_path / "Posts.xml.bz2")[1].dropped == {"damaged file": 1}


def test_entities_are_refused(tmp_path):
    bomb = '<?xml version="1.0"?><!DOCTYPE p [<!ENTITY a "aaaa"><!ENTITY b SYSTEM "file:///etc/passwd">]>'
    (tmp_path / "Posts.xml").write_text(bomb + '<posts><row Id="1" PostTypeId="1" Title="&a;" Body="&a;"/></posts>')
    threads, errors = read_discussions(tmp_path / "Posts.xml")
    assert threads == [] and errors.dropped == {"damaged file": 1} and "document type" in errors.samples[0]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("plain", "plain"),
        ("<p>a <b>bold</b> <a href='http://x'>link</a><br>next</p><p>b</p>", "a bold link\nnext\n\nb"),
        ("<blockquote><p>quoted</p></blockquote><p>said</p>", "quoted\n\nsaid"),
        ("<pre class='lang-py'><code>def f():\n\n\n\n    pass</code></pre>", "```\ndef f():\n\n\n\n    pass\n```"),
        ("<p>unclosed <code>x", "unclosed `x"),
        ("<script>evil()</script>a<style>p {}</style>", "a"),
    ],
)
def test_the_html_of_a_post_becomes_text_with_its_code(body, text):
    assert convert_html(body) == text


def test_the_same_dump_gives_the_same_threads_and_leaves_no_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    rows = [comment(f"c{i}", "t3_s1", f"text {i}", i % 7, link=f"s{i % 50}") for i in range(1000)]
    path = write_rows(tmp_path / "a.jsonl", rows)
    assert read_discussions(path) == read_discussions(path)
    assert len(read_discussions(path)[0]) == 50
    assert list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.skipif("HF_LLM_DATA" not in os.environ, reason="real data: set HF_LLM_DATA")
@pytest.mark.parametrize(
    ("name", "count"), [("sharegpt/sharegpt_zh_200.jsonl", 200), ("mtbench101/mtbench101_part1.jsonl", 500)]
)
def test_real_conversations_are_read(name, count):
    threads, errors = read_discussions(Path(os.environ["HF_LLM_DATA"]) / name, 10_000_000)
    assert len(threads) == count and not errors.dropped
    assert all("User: " in chat.text and "Assistant: " in chat.text for chat in threads)


def test_the_parts_of_a_message_are_one_text(tmp_path):
    parts = [
        {"type": "text", "text": "Look"},
        {"type": "image_url", "image_url": {}},
        {"type": "text", "value": "here"},
    ]
    row = {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "I see."}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    [thread] = read(tmp_path / "a.jsonl", ReadErrors(), None, 1000)
    assert thread.text == "User: Look\nhere\n\nAssistant: I see."

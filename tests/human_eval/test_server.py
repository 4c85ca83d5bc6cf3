"""The page's server as a hostile or careless client meets it; test_page.py has the page in a browser."""

import http.client
import json
import socket
import sqlite3

import pytest

from hf_llm.core.errors import UserError
from hf_llm.human_eval.server import MAX_BODY_BYTES, TOKEN_HEADER, ArenaServer
from hf_llm.human_eval.votes import VoteDatabase, create_database
from hf_llm.reporting.local_server import is_local
from tests.human_eval.comparison import make_database, plan, serving


@pytest.fixture
def server(tmp_path):
    with serving(make_database(tmp_path)) as server:
        yield server


def ask(server, method, path, body=None, **headers):
    """Status, headers and text of a request."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, dict(answer.getheaders()), answer.read().decode()


def post(server, path, value, **headers):
    sent = {"Content_Type": "application/json", TOKEN_HEADER.replace("-", "_"): server.database.token, **headers}
    status, _, text = ask(server, "POST", path, value if isinstance(value, bytes) else json.dumps(value), **sent)
    return status, json.loads(text)


def test_the_page_hides_the_models_and_loads_nothing_from_elsewhere(server):
    for path in ("/", "/page.css", "/page.js"):
        status, headers, text = ask(server, "GET", path)
        assert status == 200
        assert "good" not in text and "weak" not in text and "//" not in text.replace("// ", "")
        assert "default-src 'none'" in headers["Content-Security-Policy"]
    status, state = ask(server, "GET", "/api/next?annotator=Ada", **{TOKEN_HEADER: server.database.token})[::2]
    assert set(json.loads(state)) == {"question", "problem", "done", "total", "waiting", "equal"}
    assert set(json.loads(state)["question"]) == {"pair", "messages", "a", "b"}


def test_a_vote_is_recorded_and_answered_with_the_next_question(server):
    vote = {"annotator": "Ada", "pair": 0, "choice": "a", "score_a": 4, "score_b": None, "seconds": 1.5}
    status, state = post(server, "/api/vote", vote)
    assert (status, state["recorded"], state["done"], state["question"]["pair"]) == (200, True, 1, 1)
    assert post(server, "/api/vote", vote)[1]["recorded"] is False
    assert post(server, "/api/undo", {"annotator": "Ada"})[1]["question"]["pair"] == 0


def test_another_sites_page_can_neither_read_nor_vote(server):
    vote = {"annotator": "Ada", "pair": 0, "choice": "a", "score_a": None, "score_b": None, "seconds": None}
    assert ask(server, "GET", "/api/next?annotator=Ada")[0] == 403
    assert post(server, "/api/vote", vote, **{TOKEN_HEADER.replace("-", "_"): "wrong"})[0] == 403
    assert post(server, "/api/vote", vote, **{TOKEN_HEADER.replace("-", "_"): "\u00e9"})[0] == 403
    assert post(server, "/api/vote", vote, Content_Type="text/plain")[0] == 415
    assert ask(server, "GET", "/", Host="evil.example")[0] == 403  # DNS rebinding
    assert ask(server, "OPTIONS", "/api/vote")[0] == 501  # no CORS preflight is answered
    assert server.database.read_votes() == []


@pytest.mark.parametrize(
    "change",
    [
        {"pair": "0"}, {"pair": True}, {"pair": 10**40}, {"pair": 99}, {"choice": "c"}, {"choice": None},
        {"score_a": 9}, {"score_a": "4"}, {"seconds": -1}, {"seconds": float("nan")}, {"annotator": ""},
        {"annotator": "x" * 99}, {"annotator": None},
    ],
)  # fmt: skip
def test_invalid_votes_are_refused(server, change):
    vote = {"annotator": "Ada", "pair": 0, "choice": "a", "score_a": None, "score_b": None, "seconds": None}
    status, answer = post(server, "/api/vote", vote | change)
    assert status == 400
    assert answer["problem"]
    assert server.database.read_votes() == []


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"{", b"\xff\xfe", b"[" * 4000], ids=range(6))
def test_bodies_that_are_not_an_object_are_refused(server, body):
    assert post(server, "/api/vote", body)[0] == 400


def test_large_unsized_and_unknown_requests_are_refused(server):
    assert post(server, "/api/vote", b" " * (MAX_BODY_BYTES + 1))[0] == 413
    assert post(server, "/api/vote", b"{}", Content_Length="-5")[0] == 411
    assert ask(server, "GET", "/../votes.sqlite")[0] == 404
    assert ask(server, "GET", "/votes.sqlite")[0] == 404
    assert ask(server, "DELETE", "/")[0] == 501


def test_a_client_that_leaves_in_the_middle_disturbs_nobody(server, capfd):
    for text in (b"GET / HTTP/1.1\r\nHo", b"POST /api/vote HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n{"):
        with socket.create_connection(server.server_address[:2]) as raw:
            raw.sendall(text)
    assert ask(server, "GET", "/")[0] == 200
    assert "Traceback" not in capfd.readouterr().err


def test_a_locked_file_is_reported_and_the_vote_counts_when_it_is_free(server):
    vote = {"annotator": "Ada", "pair": 0, "choice": "a", "score_a": None, "score_b": None, "seconds": None}
    other = sqlite3.connect(server.database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    status, answer = post(server, "/api/vote", vote)
    assert status == 503
    assert "locked by another program" in answer["problem"]
    other.execute("ROLLBACK")
    assert post(server, "/api/vote", vote)[1]["recorded"]


def test_others_need_the_token_to_see_anything(tmp_path):
    with serving(make_database(tmp_path), "0.0.0.0") as server:
        assert server.url.endswith(f"/?token={server.database.token}")
        port = server.server_address[1]
        server.server_address = ("127.0.0.1", port)
        assert ask(server, "GET", "/")[0] == 403
        assert ask(server, "GET", "/?token=wrong")[0] == 403
        status, _, text = ask(server, "GET", f"/?token={server.database.token}", Host="my-machine:8000")
        assert status == 200
        assert server.database.token in text


def test_an_annotators_name_is_never_markup_of_the_page(tmp_path):
    with serving(make_database(tmp_path), annotator="O'Hara <b> & Co") as server:
        text = ask(server, "GET", "/")[2]
        assert "O'Hara" not in text and "<b> &" not in text
        meta = text.split("arena-annotator\" content='")[1].split("'")[0]
        assert json.loads(meta) == "O'Hara <b> & Co"


def test_a_port_in_use_is_a_user_error(server):
    with pytest.raises(UserError, match="--port"):
        ArenaServer(server.database, "127.0.0.1", server.server_address[1])
    with pytest.raises(UserError, match="--port"):
        ArenaServer(server.database, "127.0.0.1", 99999)


def test_the_page_gets_the_reason_why_no_answers_come(tmp_path):
    comparison = plan(2)
    comparison.answers = {}
    create_database(tmp_path / "v.sqlite", comparison)
    with serving(VoteDatabase(tmp_path / "v.sqlite"), problem=lambda: "the model has gone") as server:
        state = json.loads(ask(server, "GET", "/api/next?annotator=Ada", **{TOKEN_HEADER: server.database.token})[2])
    assert state["question"] is None
    assert (state["waiting"], state["problem"]) == (2, "the model has gone")


def test_loopback_is_local_and_nothing_else():
    assert all(is_local(host) for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"))
    assert not any(is_local(host) for host in ("0.0.0.0", "192.168.1.2", "::", "", "localhost.evil.example"))


def test_answers_that_arrive_between_two_reads_leave_nobody_without_a_pair(tmp_path, monkeypatch):
    comparison = plan(1)
    late, comparison.answers = comparison.answers, {}
    create_database(tmp_path / "v.sqlite", comparison)
    database = VoteDatabase(tmp_path / "v.sqlite")
    count_progress = database.count_progress

    def count_after_the_answers_arrived(annotator):
        with VoteDatabase(tmp_path / "v.sqlite") as generator:
            for name, texts in late.items():
                generator.add_answers(name, texts)
        return count_progress(annotator)

    monkeypatch.setattr(database, "count_progress", count_after_the_answers_arrived)
    question, progress = database.read_next("Ada")
    assert question is None and progress["waiting"] == 1  # so the page asks again
    question, progress = database.read_next("Ada")
    assert question is not None and progress["waiting"] == 0


def test_the_command_of_the_report_is_shown_at_the_end_and_on_this_machine_only(tmp_path):
    database = make_database(tmp_path, prompts=1)
    with serving(database) as server:
        assert "report" not in server.next_state("Ada")
        database.record_vote(0, "Ada", "a")
        assert server.next_state("Ada")["report"].endswith("--report")
        server.local = False
        assert "report" not in server.next_state("Ada")

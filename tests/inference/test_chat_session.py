from threading import Event

import pytest

from hf_llm.core.errors import UserError
from hf_llm.inference.chat_session import ChatSession
from hf_llm.inference.generate import encode_conversation, generate_replies, shorten_last_message
from tests.tiny_models import tiny_model, tiny_tokenizer


def tiny_session(max_new_tokens: int = 8) -> ChatSession:
    return ChatSession(tiny_model(), tiny_tokenizer(), max_new_tokens, do_sample=False)


def test_the_streamed_pieces_add_up_to_the_reply():
    session = tiny_session()
    answer = "".join(session.stream_reply("Who?"))
    assert (
        answer
        == generate_replies(
            tiny_model(), tiny_tokenizer(), [[{"role": "user", "content": "Who?"}]], 8, do_sample=False
        )[0]
    )
    assert 0 < session.generated_tokens <= 8


def test_the_pieces_come_while_the_model_generates_and_its_tokens_are_counted():
    session = tiny_session(100)
    steps = []
    first_piece_is_read = Event()

    def wait_for_the_reader(*arguments):
        steps.append(1)
        if len(steps) == 60:
            assert first_piece_is_read.wait(60)

    session.model.lm_head.register_forward_hook(wait_for_the_reader)
    for _ in session.stream_reply("Who?"):
        first_piece_is_read.set()
    assert len(steps) >= 60
    assert session.generated_tokens == len(steps)  # each token is drawn from the logits of one pass


def test_the_second_answer_knows_the_first():
    session = tiny_session()
    for question in ("Who?", "Why?"):
        list(session.stream_reply(question))
    assert [message["role"] for message in session.messages] == ["user", "assistant", "user", "assistant"]
    expected = generate_replies(tiny_model(), tiny_tokenizer(), [session.messages[:3]], 8, do_sample=False)[0]
    assert session.messages[3]["content"] == expected
    session.reset()
    assert session.messages == []


def test_a_long_conversation_stays_within_the_context():
    session = tiny_session()
    for number in range(6):
        list(session.stream_reply(f"A question of some length, number {number}?"))
    assert len(session.messages) < 12
    assert session.messages[-2]["content"].endswith("5?")


def test_leaving_early_stops_the_model_and_keeps_the_pieces_so_far():
    session = tiny_session(100)
    pieces = session.stream_reply("Who?")
    first = next(pieces)
    pieces.close()
    assert session.generated_tokens < 100
    assert session.messages[-1] == {"role": "assistant", "content": first}


def test_an_error_while_generating_reaches_the_reader():
    session = ChatSession(tiny_model(), tiny_tokenizer(), 8, do_sample=True, temperature=-1.0)
    with pytest.raises(ValueError, match="temperature"):
        list(session.stream_reply("Who?"))


def test_a_model_without_a_chat_template_is_refused_at_once():
    with pytest.raises(UserError, match="no chat template"):
        ChatSession(tiny_model(), tiny_tokenizer(chat=False), 8)


def test_a_question_too_long_keeps_its_header_and_end_and_says_what_is_left_out():
    tokenizer = tiny_tokenizer()
    session = ChatSession(tiny_model(), tokenizer, 8, do_sample=False)
    question = "The beginning. " + "x" * 300 + " The end?"
    list(session.stream_reply(question))
    assert "tokens longer than the 120 that fit; its beginning is left out" in session.note
    (asked, _) = session.messages
    assert asked["role"] == "user" and asked["content"].endswith("x The end?")
    prompt = encode_conversation(tokenizer, [asked])
    assert len(prompt) == 120 and tokenizer.decode(prompt).startswith("<|im_start|>user")
    list(session.stream_reply("Short?"))
    assert "the oldest 2 messages no longer fit the context" in session.note
    list(session.stream_reply("Short?"))
    assert session.note == ""


def test_a_system_message_that_fills_the_context_is_refused():
    conversation = [{"role": "system", "content": "y" * 300}, {"role": "user", "content": "Well?"}]
    with pytest.raises(UserError, match="even without its last message; shorten the system message"):
        shorten_last_message(tiny_tokenizer(), conversation, 120)

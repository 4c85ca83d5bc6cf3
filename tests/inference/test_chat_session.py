import pytest

from hf_llm.core.errors import UserError
from hf_llm.inference.chat_session import Dialogue
from hf_llm.inference.generate import reply
from tests.tiny_models import tiny_model, tiny_tokenizer


def dialogue(max_new_tokens: int = 8) -> Dialogue:
    return Dialogue(tiny_model(), tiny_tokenizer(), max_new_tokens, do_sample=False)


def test_the_pieces_make_the_reply_that_comes_at_once_elsewhere():
    talk = dialogue()
    answer = "".join(talk.answer("Who?"))
    assert (
        answer == reply(tiny_model(), tiny_tokenizer(), [[{"role": "user", "content": "Who?"}]], 8, do_sample=False)[0]
    )
    assert 0 < talk.tokens <= 8


def test_the_second_answer_knows_the_first():
    talk = dialogue()
    for question in ("Who?", "Why?"):
        list(talk.answer(question))
    assert [message["role"] for message in talk.messages] == ["user", "assistant", "user", "assistant"]
    expected = reply(tiny_model(), tiny_tokenizer(), [talk.messages[:3]], 8, do_sample=False)[0]
    assert talk.messages[3]["content"] == expected
    talk.reset()
    assert talk.messages == []


def test_a_long_talk_stays_within_the_context():
    talk = dialogue()
    for number in range(6):
        list(talk.answer(f"A question of some length, number {number}?"))
    assert len(talk.messages) < 12
    assert talk.messages[-2]["content"].endswith("5?")


def test_leaving_early_stops_the_model_and_keeps_what_it_said():
    talk = dialogue(100)
    pieces = talk.answer("Who?")
    first = next(pieces)
    pieces.close()
    assert talk.tokens < 100
    assert talk.messages[-1] == {"role": "assistant", "content": first}


def test_an_error_while_generating_reaches_the_reader():
    talk = Dialogue(tiny_model(), tiny_tokenizer(), 8, do_sample=True, temperature=-1.0)
    with pytest.raises(ValueError, match="temperature"):
        list(talk.answer("Who?"))


def test_a_model_without_a_chat_template_is_refused_at_once():
    with pytest.raises(UserError, match="no chat template"):
        Dialogue(tiny_model(), tiny_tokenizer(chat=False), 8)

import pytest

from hf_llm.chat import main
from hf_llm.inference.generate import generate_replies
from tests.tiny_models import save_tiny_model, tiny_model, tiny_tokenizer


def type_lines(monkeypatch, *lines: str) -> None:
    lines_left = iter(lines)

    def type_next_line(prompt: str) -> str:
        line = next(lines_left, None)
        if line is None:
            raise EOFError
        return line

    monkeypatch.setattr("builtins.input", type_next_line)


def test_questions_are_answered_until_exit(tmp_path, monkeypatch, capsys):
    type_lines(monkeypatch, "Hello?", "", "/reset", "Hello?", "/exit", "never read")
    main([str(save_tiny_model(tmp_path)), "--greedy", "--max-new-tokens", "8"])
    expected = generate_replies(
        tiny_model(), tiny_tokenizer(), [[{"role": "user", "content": "Hello?"}]], 8, do_sample=False
    )[0]
    output = capsys.readouterr()
    assert output.out.count(expected) == 2
    assert "(a new conversation)" in output.out
    assert "tokens/s" in output.err


def test_the_end_of_input_ends_the_chat(tmp_path, monkeypatch, capsys):
    type_lines(monkeypatch)
    main([str(save_tiny_model(tmp_path))])
    assert "tokens/s" not in capsys.readouterr().err


def test_a_base_model_is_refused_with_what_to_do_instead(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(save_tiny_model(tmp_path, chat=False))])
    assert stop.value.code == 2
    assert "hf_llm.generate" in capsys.readouterr().err

"""Secrets stay out of what is shared, and ordinary settings stay in."""

from hf_llm.reporting.secrets import HIDDEN, redact

TOKEN = "hf_" + "aB3" * 11


def test_a_token_is_hidden_by_its_shape_wherever_it_stands():
    found = redact({"note": f"log in with {TOKEN}!", "list": [TOKEN], TOKEN: 1, "deep": {"x": ("a", TOKEN)}})
    assert TOKEN not in str(found)
    assert found["note"] == f"log in with {HIDDEN}!"


def test_a_value_is_hidden_by_the_key_it_stands_under():
    tree = {"pretrain.training.hub_token": "secret1", "api_key": "k", "password": "p", "auth_token": ["x"], "key": "v"}
    assert redact(tree) == {**dict.fromkeys(list(tree)[:-1], HIDDEN), "key": "v"}


def test_a_value_is_hidden_by_being_a_secret_of_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert redact("wandb: 0123456789abcdef") == f"wandb: {HIDDEN}"


def test_settings_that_speak_of_tokens_are_no_secrets():
    tree = {"tokens": 262144, "tokens_per_step": 8192, "eos_token": "<|endoftext|>", "hub_token": None}
    assert redact(tree) == tree

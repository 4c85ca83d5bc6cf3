"""Secrets stay out of what is shared, and ordinary settings stay in."""

from hf_llm.reporting.secrets import HIDDEN, redact_secrets

TOKEN = "hf_" + "aB3" * 11


def test_redact_hides_a_token_by_its_shape():
    redacted = redact_secrets({"note": f"log in with {TOKEN}!", "list": [TOKEN], TOKEN: 1, "deep": {"x": ("a", TOKEN)}})
    assert TOKEN not in str(redacted)
    assert redacted["note"] == f"log in with {HIDDEN}!"


def test_redact_hides_a_value_by_its_key():
    tree = {"pretrain.training.hub_token": "secret1", "api_key": "k", "password": "p", "auth_token": ["x"], "key": "v"}
    assert redact_secrets(tree) == {**dict.fromkeys(list(tree)[:-1], HIDDEN), "key": "v"}


def test_redact_hides_a_secret_of_the_environment(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    assert redact_secrets("wandb: 0123456789abcdef") == f"wandb: {HIDDEN}"


def test_redact_keeps_settings_about_tokens():
    tree = {"tokens": 262144, "tokens_per_step": 8192, "eos_token": "<|endoftext|>", "hub_token": None}
    assert redact_secrets(tree) == tree

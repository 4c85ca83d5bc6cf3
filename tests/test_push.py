"""Pushing to the Hub, against a stand-in for its HTTP API on loopback."""

import shutil
import subprocess
import sys
import textwrap

import pytest

from tests.stand_in_hub import running_hub
from tests.tiny_recipe import run_module

TOKEN = "hf_" + "x" * 34


@pytest.fixture
def prepared(tiny_life, tmp_path):
    shutil.copy(tiny_life / "tiny.yaml", tmp_path)
    for item in ("corpus", "tokenizer", "tokens"):
        shutil.copytree(tiny_life / "runs/tiny" / item, tmp_path / "runs/tiny" / item)
    (tmp_path / "texts").symlink_to(tiny_life / "texts")
    return tmp_path


def environment(hub, folder) -> dict[str, str]:
    return {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(folder / "home"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
    }


PUSH = (
    "--pretrain.training.push_to_hub=true",
    "--pretrain.training.hub_model_id=ada/tiny",
    "--pretrain.training.max_steps=4",
)


def test_a_pushed_model_loads_from_the_hub_in_a_clean_process(prepared):
    with running_hub() as hub:
        variables = environment(hub, prepared)
        done = run_module("hf_llm.pretrain", "tiny.yaml", *PUSH, folder=prepared, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        files = hub.repositories["ada/tiny"]
        assert {"config.json", "model.safetensors", "modeling_hf_llm.py", "tokenizer.json", "README.md"} <= set(files)
        assert not [path for path in files if path.startswith("checkpoint-") or path.endswith(".bin")]
        card = files["README.md"].decode()
        assert card.startswith("---\n") and "cc0-1.0" in card
        assert not [path for path, content in files.items() if TOKEN.encode() in content]
        code = """
            import sys
            sys.modules["hf_llm"] = None
            from transformers import AutoModelForCausalLM, AutoTokenizer
            model = AutoModelForCausalLM.from_pretrained("ada/tiny", trust_remote_code=True)
            tokenizer = AutoTokenizer.from_pretrained("ada/tiny")
            out = model.generate(**tokenizer("The red", return_tensors="pt"), max_new_tokens=4)
            print("loaded", type(model).__name__, out.shape[1])
        """
        import os

        loaded = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)],
            env={**os.environ, **variables, "HF_HOME": str(prepared / "other")},
            capture_output=True,
            text=True,
            check=False,
        )
    assert "loaded HfLlmForCausalLM" in loaded.stdout, loaded.stderr
    assert TOKEN not in done.stdout + done.stderr
    for path in (prepared / "runs").rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes()


def test_a_push_that_fails_costs_no_training_and_says_how_to_repeat_it(prepared):
    with running_hub() as hub:
        variables = environment(hub, prepared)
        hub.refuse_commits = True
        done = run_module("hf_llm.pretrain", "tiny.yaml", *PUSH, folder=prepared, **variables)
    assert done.returncode == 2
    assert "the model is finished in runs/tiny/base" in done.stderr
    assert "hf upload ada/tiny runs/tiny/base" in done.stderr
    assert (prepared / "runs/tiny/base/manifest.json").exists()


def test_a_hub_that_refuses_is_told_before_training_starts(prepared):
    with running_hub() as hub:
        hub.fail = True
        done = run_module("hf_llm.pretrain", "tiny.yaml", *PUSH, folder=prepared, **environment(hub, prepared))
    assert done.returncode == 2
    assert "ada/tiny" in done.stderr and "Traceback" not in done.stderr

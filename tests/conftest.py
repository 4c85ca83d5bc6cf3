"""One whole life of the tiny recipe, shared by the tests of the stages."""

import importlib
import os

import pytest

from tests.tiny_recipe import prepare, run_module, write_inputs

# The check of the whole recipe before each stage takes a second or two: it runs in the tests that are about it, and
# once before the whole life below.
os.environ.setdefault("HF_LLM_SKIP_CHECK", "1")

# No test asks the Hub on the internet. Where there is no network, each question costs seconds.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# The files of tests that take longest. They come first, so that no process is left alone with one of them at the end.
LONGEST = (
    "test_adding", "test_dpo", "test_pretrain", "test_build_trainer", "test_batch_rampup", "test_grpo", "test_run",
    "test_stock_models", "test_parallelism", "test_prepare_data", "test_tokenize_corpus", "test_train_tokenizer",
    "test_kto", "test_auto_batch_size", "test_ablate", "test_integrations", "test_families", "test_reward_functions",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture(scope="session")
def tiny_life(tmp_path_factory):
    """A folder where the tiny recipe's whole life has been run: `runs/tiny`. Read it, do not write to it."""
    folder = tmp_path_factory.mktemp("life")
    write_inputs(folder)
    done = run_module("hf_llm.run", "tiny.yaml", folder=folder, HF_LLM_SKIP_CHECK="0")
    assert done.returncode == 0, done.stdout + done.stderr
    (folder / "output.txt").write_text(done.stdout, encoding="utf-8")
    (folder / "errors.txt").write_text(done.stderr, encoding="utf-8")
    return folder


@pytest.fixture
def tiny_inputs(tmp_path):
    """A fresh folder with the tiny recipe and its inputs, nothing made of it yet."""
    write_inputs(tmp_path)
    return tmp_path


@pytest.fixture
def prepared(tiny_life, tmp_path):
    """A folder with the tiny recipe and its corpus, tokenizer and tokens; nothing is trained yet."""
    return prepare(tiny_life, tmp_path)


@pytest.fixture(scope="session")
def trained_alone(tiny_life, tmp_path_factory):
    """The folder of the tiny model after 20 steps of one process, each logged; saved every 10. Do not write to it."""
    folder = prepare(tiny_life, tmp_path_factory.mktemp("alone"))
    steps = ("max_steps=20", "logging_steps=1", "save_steps=10")
    done = run_module("hf_llm.pretrain", "tiny.yaml", *(f"--pretrain.training.{step}" for step in steps), folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs/tiny/base"


@pytest.fixture
def refusal(monkeypatch, capfd):
    """What a command says of an input it refuses: `refusal(module, *arguments, folder=...)`, run in this process."""

    def run(module: str, *arguments: str, folder) -> str:
        monkeypatch.chdir(folder)
        with pytest.raises(SystemExit) as stopped:
            importlib.import_module(module).main(list(arguments))
        said = capfd.readouterr()
        assert stopped.value.code == 2, said.out + said.err
        assert "Traceback" not in said.err
        return said.err

    return run

"""What a command loads before it works: a help, and a mistake in a recipe, come without the libraries."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from hf_llm.__main__ import command_names
from hf_llm.core.recipe import parse_yaml
from hf_llm.pipeline.stages import STAGES, is_requested
from tests.tiny_recipe import RECIPE, write_inputs

# What takes seconds to import, or brings along what does.
LIBRARIES = (
    "accelerate", "datasets", "datatrove", "deepspeed", "huggingface_hub", "pandas", "peft", "pyarrow", "scipy",
    "tokenizers", "torch", "transformers", "trl", "wandb",
)  # fmt: skip

# Calls each command in turn, and prints what it has said and which libraries have been loaded by then.
CALL_EACH = """
import contextlib, importlib, io, json, sys
libraries, modules, arguments = map(json.loads, sys.argv[1:])
for name in modules:
    said = io.StringIO()
    code = 0
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            importlib.import_module(name).main(arguments)
        except SystemExit as stop:
            code = stop.code
    print(json.dumps([name, code, said.getvalue(), sorted(set(libraries) & set(sys.modules))]))
"""

# The commands that check a whole recipe, of those that the tiny recipe has sections for.
TREE = parse_yaml(RECIPE)
CHECKING = [stage.module for stage in STAGES.values() if is_requested(TREE, stage.folder) and not stage.restates]
CHECKING += ["hf_llm.run", "hf_llm.check"]

# Mistakes of every kind that is told at once: the arguments, and what is said.
MISTAKES = {
    "unknown section": (["--pretrian={}"], "pretrian: no such key; did you mean pretrain?"),
    "unknown key": (["--pretrain.token_per_step=1"], "pretrain.token_per_step: no such key; did you mean tokens_per"),
    "unknown key of transformers": (["--pretrain.training.max_step=1"], "no such key; did you mean max_steps?"),
    "unknown key of TRL": (["--sft.training.paking=true"], "sft.training.paking: no such key; did you mean packing?"),
    "unknown key of PEFT": (["--sft.lora.lora_alfa=1"], "sft.lora.lora_alfa: no such key; did you mean lora_alpha?"),
    "unknown key of the model": (["--model.hidden_sise=8"], "model.hidden_sise: no such key; did you mean hidden_size"),
    "unknown key of another model": (
        ["--model={model_type: bert, hidden_sise: 8}"], "model.hidden_sise: no such key; did you mean hidden_size?"
    ),
    "unknown model_type": (["--model={model_type: lama}"], "model_type: 'lama' is unknown; did you mean llama?"),
    "wrong type": (["--dpo.training.beta=much"], "dpo.training.beta: 'much' does not fit"),
    "wrong choice": (["--pretrain.training.save_strategy=7"], "pretrain.training.save_strategy: 7 does not fit"),
    "values that do not go together": (["--sft.lora=null", "--sft.quantize=4bit"], "sft: quantize"),
    "missing text": (["--corpus.sources=[{path: nowhere, license: mit}]"], "corpus.sources[0]: nowhere does not exist"),
    "missing rows": (["--sft.data=[{path: no.jsonl, license: mit}]"], "sft.data[0]: no.jsonl does not exist"),
    "missing model": (["--dpo.model=runs/other/sft"], "dpo.model: there is no folder runs/other/sft"),
    "missing template": (["--tokenizer.chat_template=no.jinja"], "tokenizer.chat_template: no.jinja is neither"),
    "no YAML": (["--name=[}"], "--name: '[}' cannot be parsed as YAML"),
}  # fmt: skip


def call_each(modules: list[str], arguments: list[str], folder: Path) -> list[tuple[str, int, str, list[str]]]:
    """Call the `main` of each module with the same arguments, all in one new process.

    Returns for each its name, its exit code, what it has printed and which libraries have been imported so far.
    """
    texts = [json.dumps(value) for value in (LIBRARIES, modules, arguments)]
    done = subprocess.run([sys.executable, "-c", CALL_EACH, *texts], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def test_no_help_imports_a_library(tmp_path):
    answers = call_each(["hf_llm.__main__", *(f"hf_llm.{name}" for name in command_names())], ["--help"], tmp_path)
    assert len(answers) == len(command_names()) + 1
    for name, code, said, loaded in answers:
        assert (name, code, loaded) == (name, 0, [])
        assert said.strip()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_a_recipe_is_told_before_a_library_is_imported(mistake, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_LLM_SKIP_CHECK")
    write_inputs(tmp_path, documents=2)
    arguments, expected = MISTAKES[mistake]
    answers = call_each(CHECKING, ["tiny.yaml", *arguments], tmp_path)
    assert len(answers) == len(CHECKING)
    for name, code, said, loaded in answers:
        assert (name, code, loaded) == (name, 2, [])
        assert expected in said, (name, said)


def test_a_recipe_that_is_not_there_is_told_before_a_library_is_imported(tmp_path):
    for name, code, said, loaded in call_each([*CHECKING, "hf_llm.plan", "hf_llm.ablate"], ["no.yaml"], tmp_path):
        assert (name, code, loaded) == (name, 2, [])
        assert said.strip()


def test_importing_a_command_prints_nothing_and_warns_of_nothing(tmp_path):
    code = "import " + ", ".join(f"hf_llm.{name}" for name in command_names())
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

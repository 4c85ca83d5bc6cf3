"""Every command and recipe in README.md and docs/ is one that the program takes."""

import importlib
import io
import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stdout
from functools import cache
from pathlib import Path

import pytest
import yaml
from accelerate.commands.launch import launch_command_parser

from hf_llm.evaluate import expand_model_option
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.stages import STAGES

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[str]:
    """The fenced blocks of all pages in a language; "" for those that name none."""
    return [
        body
        for page in PAGES
        for name, body in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
        if name == language
    ]


def commands() -> list[str]:
    whole = [re.sub(r"\\\n\s*", "", block) for block in blocks("")]  # commands that go on in the next line
    lines = [line.split("  #")[0].strip() for block in whole for line in block.splitlines()]
    return sorted({line for line in lines if line.startswith(("python -m hf_llm", "accelerate launch", "make "))})


def parts(command: str) -> tuple[str, list[str]]:
    """The module a command runs and its arguments."""
    words = shlex.split(command)
    if words[0] == "accelerate":
        options = launch_command_parser().parse_args(words[2:])
        assert options.config_file is None or (ROOT / options.config_file).exists()
        return options.training_script, options.training_script_args
    return words[2], words[3:]


@cache
def help_of(module: str) -> str:
    """What a command says of itself."""
    with redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit, match=r"^0$"):
        importlib.import_module(module).main(["--help"])
    return said.getvalue()


@pytest.mark.parametrize("command", commands())
def test_every_command_is_understood(command, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    if command.startswith("make "):
        assert re.search(rf"^{command.split()[1]}:", (ROOT / "Makefile").read_text(), re.M)
        return
    module, arguments = parts(command)
    if module in {stage.module for stage in STAGES.values()} | {"hf_llm.run"}:  # what is no key of a recipe
        arguments = [a for a in arguments if a.split("=")[0] not in ("--fresh", "--explain", "--preview")]
    if module == "hf_llm.evaluate":
        arguments = expand_model_option(arguments)
    if module == "hf_llm.run":
        for stage in (stage for folder, stage in STAGES.items() if Run(arguments).is_requested(folder)):
            Run(arguments).read(importlib.import_module(stage.module).Recipe)
    elif module in {stage.module for stage in STAGES.values()} and "recipe.yaml" not in arguments:
        Run(arguments).read(importlib.import_module(module).Recipe)
    else:
        for option in (a.split("=")[0] for a in arguments if a.startswith("--")):
            assert option in help_of(module)


@pytest.mark.parametrize("block", blocks("yaml"), ids=lambda block: block.splitlines()[0][:40])
def test_every_recipe_shown_is_valid(block, tmp_path):
    given = yaml.safe_load(block)
    corpus = {"sources": [{"path": "x", "license": "mit"}], **given.get("corpus", {})}
    sections = {"name": "shown", **given, "corpus": corpus}
    path = tmp_path / "shown.yaml"
    path.write_text(yaml.safe_dump(sections), encoding="utf-8")
    for folder, stage in STAGES.items():
        if {section.split(".")[0] for section in stage.sections} & set(given) or folder in ("corpus", "tokenizer"):
            Run([str(path)]).read(importlib.import_module(stage.module).Recipe)


def test_the_tree_on_the_page_of_the_layout_is_the_tree():
    text = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8")
    for module in (ROOT / "src" / "hf_llm").glob("*.py"):
        assert module.stem == "__init__" or module.name in text, module.name
    for room in (path.parent.name for path in (ROOT / "src" / "hf_llm").glob("*/__init__.py")):
        assert f"{room}/" in text, room


def test_the_lines_that_use_the_result_run_where_hf_llm_is_not_installed(tiny_life):
    """Nothing is asked on standard input, which is open and says nothing."""
    (block,) = [block for block in blocks("python") if "runs/mine/dpo" in block]
    code = "import sys; sys.modules['hf_llm'] = None\n" + block.replace("runs/mine/dpo", "runs/tiny/dpo")
    code += "\nprint(type(model).__name__, len(tokenizer), tokenizer.chat_template is not None)"
    read_end, write_end = os.pipe()
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tiny_life, stdin=read_end, capture_output=True, text=True, timeout=120
        )
    finally:
        os.close(read_end)
        os.close(write_end)
    assert done.stdout.strip() == "HfLlmForCausalLM 320 True", done.stderr

"""Everything shipped to be launched parses: each recipe, accelerate and DeepSpeed file, and the command in its head."""

import importlib
import json
import re
import shlex
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser

from hf_llm.core.errors import UserError
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.stages import STAGES
from hf_llm.training.arguments import check_deepspeed_config

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").rglob("*.yaml"))
LAUNCHES = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
DEEPSPEED = sorted((ROOT / "ds_configs").glob("*.json"))


def name(path: Path) -> str:
    return path.stem


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_LLM_DATA", str(tmp_path))


def first_command(path: Path) -> list[str]:
    """The command in the first comment of a file that starts one, what it sets in the environment left out."""
    lines = (line.removeprefix("# ") for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    commands = (re.sub(r"^[A-Z_]+=\w+ ", "", line) for line in lines)
    return shlex.split(next(line for line in commands if line.startswith(("accelerate launch", "python -m"))))


@pytest.mark.parametrize("path", RECIPES, ids=name)
def test_every_section_of_a_recipe_is_valid_for_its_stage(path):
    run = Run([str(path)])
    for folder, stage in STAGES.items():
        asked = {"corpus"} if "pretrain" not in run.tree else STAGES.keys()  # some examples are only about text
        if folder in asked and run.is_requested(folder):
            Run([str(path)]).read(importlib.import_module(stage.module).Recipe)


@pytest.mark.parametrize("path", [*RECIPES, *LAUNCHES], ids=name)
def test_the_first_comment_is_a_command_that_parses(path):
    command = first_command(path)
    if command[0] == "accelerate":
        options = launch_command_parser().parse_args(command[2:])
        if options.config_file:
            load_config_from_file(options.config_file)
        module, arguments = options.training_script, options.training_script_args
    else:
        module, arguments = command[2], command[3:]
    if path in RECIPES:
        assert Path(arguments[0]) == path.relative_to(ROOT)
    if module != "hf_llm.run":
        Run(arguments).read(importlib.import_module(module).Recipe)
    assert Run(arguments).name


@pytest.mark.parametrize("path", LAUNCHES, ids=name)
def test_a_launch_config_says_only_how_many_processes_and_which_engine(path):
    config = load_config_from_file(str(path)).to_dict()
    assert not {"gradient_accumulation_steps", "gradient_clipping"} & set(config)
    assert ("mixed_precision" in config) == ("fp8_config" in config)  # TrainingArguments has no key for 8 bits
    if config.get("deepspeed_config"):
        assert (ROOT / config["deepspeed_config"]["deepspeed_config_file"]).exists()


@pytest.mark.parametrize("path", DEEPSPEED, ids=name)
def test_a_deepspeed_config_leaves_shared_keys_to_the_recipe(path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    check_deepspeed_config("pretrain")
    config = json.loads(path.read_text(encoding="utf-8"))
    assert config["bf16"] == {"enabled": "auto"}
    assert config["gradient_clipping"] == "auto"


@pytest.mark.parametrize(
    "changed",
    [{"gradient_clipping": 1.0}, {"train_batch_size": "8"}, {"scheduler": {}}, {"optimizer": {"type": "AdamW"}}],
)
def test_a_deepspeed_config_that_fixes_a_shared_key_is_refused(tmp_path, monkeypatch, changed):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps({"zero_optimization": {"stage": 2}, **changed}))
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(path))
    with pytest.raises(UserError, match=next(iter(changed))):
        check_deepspeed_config("pretrain")

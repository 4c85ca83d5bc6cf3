"""Recipes: what they accept, what they refuse, and in which words."""

from dataclasses import dataclass, field
from typing import TypedDict

import pytest

from hf_llm import dpo, evaluate
from hf_llm.core.errors import UserError
from hf_llm.core.recipe import Settings, parse_yaml, to_plain
from hf_llm.core.recipe_help import describe_keys
from hf_llm.evaluation.benchmark import TaskSettings
from hf_llm.pipeline.run import Run, read_run


@dataclass
class Part:
    steps: int
    share: float = 0.5
    names: list[str] = field(default_factory=list)


@dataclass
class Optimizer:
    """Stands for a class of another library."""

    rate: float = 0.1
    fused: bool = False


@dataclass
class Recipe:
    name: str
    pretrain: Part
    model: Settings[Optimizer] = field(default_factory=Settings)
    sft: Part | None = None
    corpus: list[Part] = field(default_factory=list)
    seed: int = 42


def write(folder, text):
    path = folder / "small.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_numbers_and_words_are_read_as_people_write_them():
    assert parse_yaml("{a: 6e-4, b: no, c: 1_000, d: .5, e: true, f: 1.0, g: null}") == {
        "a": 6e-4, "b": "no", "c": 1000, "d": 0.5, "e": True, "f": 1.0, "g": None,
    }  # fmt: skip


def test_a_recipe_becomes_typed_settings_and_overrides_win(tmp_path):
    path = write(tmp_path, "pretrain: {steps: 3}\nmodel: {rate: 6e-4}\n")
    recipe = Run([path, "--pretrain.share=0.25", "--sft.steps", "7", "--corpus=[{steps: 1}]"]).read(Recipe)
    assert recipe.name == "small"
    assert recipe.pretrain == Part(steps=3, share=0.25)
    assert recipe.sft == Part(steps=7)
    assert recipe.corpus == [Part(steps=1)]
    assert recipe.model == {"rate": 6e-4}
    assert to_plain(recipe)["pretrain"] == {"steps": 3, "share": 0.25, "names": []}


def test_auto_leaves_a_librarys_setting_to_the_program(tmp_path):
    recipe = Run([write(tmp_path, "pretrain: {steps: 3}\nmodel: {rate: auto, fused: true}")]).read(Recipe)
    assert recipe.model == {"fused": True}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("pretrain: {stepz: 3}", ["pretrain.stepz: no such key; did you mean steps?", "pretrain.steps: missing"]),
        ("pretrian: {steps: 3}", ["pretrian: no such key; did you mean pretrain?", "pretrain: missing"]),
        ("pretrain: {steps: eight}", ["pretrain.steps: 'eight' does not fit", "integer"]),
        ("pretrain: {steps: 3, share: yes}", ["pretrain.share: 'yes' does not fit", "number"]),
        ("pretrain: {steps: 3, names: {a: 1}}", ["pretrain.names"]),
        ("pretrain: 3", ["pretrain: 3 does not fit; this section holds keys"]),
        ("pretrain: {steps: 3}\nmodel: {rat: 1}", ["model.rat: no such key; did you mean rate?"]),
        ("pretrain: {steps: 3}\nmodel: {rate: fast}", ["model.rate: 'fast' does not fit"]),
        ("pretrain: {steps: 3, steps: 4}", ["the key 'steps' stands twice"]),
        ("pretrain: {steps: 3}\ncorpus: [{steps: 1}, {step: 2}]", ["corpus[1].step: no such key; did you mean steps?"]),
        ("pretrain: {steps: 3}\nname: ${HF_LLM_NO_SUCH}", ["name: the environment variable HF_LLM_NO_SUCH is not set"]),
        ("pretrain: !!python/object/apply:os.getcwd []", ["cannot parse", "as YAML"]),
        ("- a\n- b", ["holds no sections"]),
        ("pretrain: {steps: 3", ["cannot parse", "as YAML: line 1"]),
        ("pretrain:\n\tsteps: 3", ["as YAML: line 2 is indented with a tab; use spaces"]),
        ("pretrain:\n  steps: 3\n \tshare: 1", ["as YAML: line 3 is indented with a tab; use spaces"]),
        ("pretrain: {\tsteps: 3, names:\t[}", ["as YAML: line 1, column"]),
        ("pretrain: @steps", ["as YAML: line 1, column 11: found character '@'"]),
    ],
)
def test_a_wrong_recipe_is_refused_with_the_key_and_the_remedy(tmp_path, text, words):
    with pytest.raises(UserError) as error:
        Run([write(tmp_path, text)]).read(Recipe)
    for word in words:
        assert word in str(error.value)
    assert "unicode string" not in str(error.value)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("loss_type: ipo", "dpo.loss_type: no such key; did you mean dpo.training.loss_type?"),
        ("r: 8", "dpo.r: no such key; did you mean dpo.lora.r?"),
        ("training: {lora: {r: 8}}", "dpo.training.lora: no such key; did you mean dpo.lora?"),
        ("training: {r: 8}", "dpo.training.r: no such key; did you mean dpo.lora.r?"),
        ("training: {adamw_torch: true}", "did you mean dpo.training.optim: adamw_torch?"),
        (
            "too_long: drip",
            "dpo.too_long: 'drip' does not fit; input should be 'drop' or 'truncate'; did you mean drop?",
        ),
    ],
)
def test_a_key_of_another_section_and_a_wrong_choice_name_what_was_meant(tmp_path, keys, words):
    recipe = write(tmp_path, f"dpo: {{data: [{{path: rows.jsonl, license: mit}}], {keys}}}")
    with pytest.raises(UserError) as error:
        Run([recipe]).read(dpo.Recipe)
    assert words in str(error.value)


def test_all_problems_are_told_at_once(tmp_path):
    path = write(tmp_path, "pretrain: {steps: x, share: y}\nmodle: {}")
    with pytest.raises(UserError, match="3 problems"):
        Run([path]).read(Recipe)


def test_a_missing_recipe_names_the_nearest_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    write(tmp_path / "recipes", "pretrain: {steps: 3}")
    with pytest.raises(UserError, match=r"did you mean recipes.small\.yaml"):
        Run(["recipes/smal.yaml"]).read(Recipe)


@pytest.mark.parametrize("arguments", [["--pretrain.steps"], ["pretrain.steps=3"], ["--pretrain.steps={"]])
def test_a_broken_override_is_refused(tmp_path, arguments):
    with pytest.raises(UserError, match=r"pretrain\.steps"):
        Run([write(tmp_path, "pretrain: {steps: 3}"), *arguments]).read(Recipe)


def test_an_override_cannot_reach_below_a_plain_value(tmp_path):
    with pytest.raises(UserError, match=r"pretrain\.steps is a plain value"):
        Run([write(tmp_path, "pretrain: {steps: 3}"), "--pretrain.steps.x=1"]).read(Recipe)


def test_environment_variables_are_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_LLM_TEST_NAME", "ada")
    recipe = Run([write(tmp_path, "name: ${HF_LLM_TEST_NAME}-1\npretrain: {steps: 3}")]).read(Recipe)
    assert recipe.name == "ada-1"


def test_a_recipe_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"name: \xff\xfe")
    with pytest.raises(UserError, match="not UTF-8 text"):
        Run([str(path)]).read(Recipe)


def test_help_names_every_key(capsys):
    with pytest.raises(SystemExit) as exit:
        read_run(Recipe, ["--help"])
    assert exit.value.code == 0
    printed = capsys.readouterr().out
    for words in (
        "pretrain.steps: int (required)",
        "pretrain.share: float = 0.5",
        "model.*: every key of",
        "seed: int",
    ):
        assert words in printed


class Scaling(TypedDict, total=False):
    factor: float


@dataclass
class Positions:
    scaling: Scaling | None = None
    by_layer: dict[str, Scaling] = field(default_factory=dict)


@dataclass
class Rotary:
    name: str
    model: Positions


def test_dicts_with_named_keys_are_read_on_every_python(tmp_path):
    path = write(tmp_path, "model: {scaling: {factor: 2.0}, by_layer: {full: {factor: 4.0}}}")
    assert Run([path]).read(Rotary).model == Positions({"factor": 2.0}, {"full": {"factor": 4.0}})
    with pytest.raises(UserError, match=r"model\.scaling: 2 does not fit"):
        Run([path, "--model.scaling=2"]).read(Rotary)


def test_an_item_of_a_list_may_be_a_name_or_a_section(tmp_path):
    kinds = {entry.key: entry.kind for entry in describe_keys(evaluate.Recipe)}
    assert kinds["evaluate.tasks"] == kinds["evaluate.domains"] == "list of sections"
    assert {"evaluate.tasks[].shots", "evaluate.domains[].path"} <= kinds.keys()
    recipe = Run([write(tmp_path, "evaluate: {tasks: [hellaswag, {name: mmlu, shots: 5}]}\n")]).read(evaluate.Recipe)
    assert recipe.evaluate.task_settings == [TaskSettings("hellaswag"), TaskSettings("mmlu", shots=5)]

"""Mistyped names of every kind, and what is suggested for them."""

from pathlib import Path

import pytest

import hf_llm
from hf_llm.core.settings.library_settings import load_class, read_model_types
from hf_llm.core.similar_names import MAX_NAMES, find_similar_names, suggest_names
from hf_llm.dpo import LOSSES
from hf_llm.pipeline.stages import RECIPE_KEYS

DPO_KEYS = list(load_class("trl.DPOConfig").keys)
OPTIMIZERS = load_class("transformers.TrainingArguments").keys["optim"]["union"][0]["enum"]
LAYERS = ["embed_tokens", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]

# The names of each kind, and of typos the names that are suggested, the first one first.
TYPOS = {
    "keys": (
        DPO_KEYS,
        {
            "betta": ["beta"],
            "loss_typ": ["loss_type"],
            "losstype": ["loss_type"],
            "LEARNING-RATE": ["learning_rate"],
            "weight_dacay": ["weight_decay"],
            "max_step": ["max_steps"],
            "gradient_accumulation": ["gradient_accumulation_steps"],
            "epochs": ["num_train_epochs"],
            "num_epochs": ["num_train_epochs"],
            "lr": ["learning_rate"],
            "wd": ["weight_decay"],
            "scheduler": ["lr_scheduler_type"],
            "optimizer": ["optim"],
            "warmup": ["warmup_steps"],
            "c_attn": [],
            "foo": [],
        },
    ),
    "sections": (
        RECIPE_KEYS,
        {"pretrian": ["pretrain"], "stf": ["sft"], "dop": ["dpo"], "tokeniser": ["tokenizer"], "eval": ["evaluate"]},
    ),
    "optimizers": (
        OPTIMIZERS,
        {
            "adamww": ["adamw_torch", "adamw_torch_fused"],
            "adamw": ["adamw_torch"],
            "adam": ["adamw_torch"],
            "AdamW8bit": ["adamw_8bit"],
            "adamw_torch_fussed": ["adamw_torch_fused"],
            "sdg": ["sgd"],
            "lion": ["lion_8bit", "lion_32bit"],
            "shampoo": [],
        },
    ),
    "losses": (LOSSES, {"sigmod": ["sigmoid"], "ipoo": ["ipo"], "apozero": ["apo_zero"], "nll": []}),
    "layers": (LAYERS, {"qproj": ["q_proj"], "lmhead": ["lm_head"], "c_attn": [], "query_key_value": [], "Wqkv": []}),
    "model types": (
        read_model_types(),
        {"lama": ["llama"], "gpt-2": ["gpt2"], "llama-3": ["llama"], "mistrall": ["mistral"], "qwen33": ["qwen3"]},
    ),
}
CASES = [(kind, typo, expected) for kind, (_, typos) in TYPOS.items() for typo, expected in typos.items()]


@pytest.mark.parametrize(("kind", "typo", "expected"), CASES)
def test_find_similar_names_has_what_was_meant_and_nothing_where_nothing_is_near(kind, typo, expected):
    names = find_similar_names(typo, TYPOS[kind][0])
    assert names[: len(expected)] == expected
    assert bool(names) == bool(expected)
    assert len(names) <= MAX_NAMES


@pytest.mark.parametrize("kind", TYPOS)
def test_a_name_with_two_letters_exchanged_is_found_first(kind):
    for name in TYPOS[kind][0][::4]:
        if len(name) > 3 and name[1] != name[2]:
            typo = name[0] + name[2] + name[1] + name[3:]
            if typo not in TYPOS[kind][0]:
                assert name in find_similar_names(typo, TYPOS[kind][0]), typo


def test_suggest_names_says_something_else_where_nothing_is_near():
    assert suggest_names("stf", ["sft", "dpo"]) == "did you mean sft?"
    assert suggest_names("lion", ["lion_8bit", "lion_32bit"]) == "did you mean lion_8bit or lion_32bit?"
    assert suggest_names("x", ["sft"], "known: sft") == "known: sft"
    assert suggest_names(None, []) == ""


def test_every_suggestion_is_made_by_this_module():
    package = Path(hf_llm.__file__).parent
    others = [path for path in package.rglob("*.py") if path.name != "similar_names.py"]
    assert [path for path in others if "get_close_matches" in path.read_text(encoding="utf-8")] == []
    assert [path for path in others if 'f"did you mean {similar' in path.read_text(encoding="utf-8")] == []


def test_of_very_many_names_the_same_ones_are_found():
    few = ["bart", "bert", "albert"]
    many = [*few, *(f"task_{number}" for number in range(5000))]
    assert find_similar_names("brt", many) == find_similar_names("brt", few)
    assert find_similar_names("task_40001", many)[0].startswith("task_4000")

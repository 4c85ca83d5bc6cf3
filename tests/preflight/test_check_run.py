"""The check of a whole recipe: mistakes of every section and kind are found before anything runs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_llm.core.recipe import dump_yaml, parse_yaml, set_key
from hf_llm.pipeline.run import Run
from hf_llm.preflight.check_run import check_run
from hf_llm.preflight.findings import Findings
from hf_llm.preflight.first_check import check_sections
from hf_llm.preflight.remaining_work import list_folders
from tests.aligned_recipe import SECTIONS
from tests.tiny_recipe import RECIPE, write_inputs

PPO = {"data": [{"path": "chats.jsonl", "license": "mit"}], "evaluation_share": 0.1}
STAGES = {**SECTIONS, "ppo": PPO | {"training": {"max_steps": 2, "report_to": "none"}}}
SFT = parse_yaml(RECIPE)["sft"]
DPO = parse_yaml(RECIPE)["dpo"]
REWARDS = """
def short(completions, **columns):
    return [-float(len(completion[0]["content"])) for completion in completions]

not_a_function = 3
"""

# What is wrong: the keys that are set, the beginning of the problem (its key), and a part of its remedy.
MISTAKES: dict[str, tuple[dict[str, Any], str, str]] = {
    # Keys
    "unknown section": ({"pretrian": {}}, "pretrian: no such key", "did you mean pretrain"),
    "unknown key": ({"pretrain.token_per_step": 1024}, "pretrain.token_per_step: no such key", "tokens_per_step"),
    "unknown library key": ({"dpo.training.learning_rat": 1e-4}, "dpo.training.learning_rat: no such", "learning_rate"),
    "unknown lora key": ({"sft.lora.rank": 4}, "sft.lora.rank: no such key", ""),
    "wrong type": ({"pretrain.training.max_steps": "many"}, "pretrain.training.max_steps: 'many'", ""),
    "missing key": ({"pretrain.tokens_per_step": ...}, "pretrain.tokens_per_step: missing", ""),
    "missing section": ({"corpus": ...}, "corpus: missing", ""),
    "no data": ({"sft.data": []}, "sft: data is empty", "name at least one"),
    "share out of range": ({"kto.evaluation_share": 1.5}, "kto: evaluation_share is 1.5", "between 0 and 1"),
    # Corpus
    "missing folder": ({"corpus.sources": [{"path": "text", "license": "mit"}]}, "corpus.sources[0]", "correct `path`"),
    "empty folder": ({"corpus.sources": [{"path": "empty", "license": "mit"}]}, "corpus.sources[0]", "are read"),
    "files without text": (
        {"corpus.sources": [{"path": "blank", "license": "mit"}]}, "corpus.sources", "add text"
    ),
    "no licence": ({"corpus.sources": [{"path": "texts", "license": ""}]}, "corpus.sources[0]: license", "unknown"),
    "text column": (
        {"corpus.sources": [{"path": "rows.jsonl", "license": "mit", "text": "body"}]}, "corpus.sources[0]", "body"
    ),
    "broken rows": ({"corpus.sources": [{"path": "broken.jsonl", "license": "mit"}]}, "corpus.sources[0]", "correct"),
    "hub data set that is not there": (
        {"corpus.sources": [{"hub": "nobody/nothing", "license": "mit"}]}, "corpus.sources[0].hub", "correct the name"
    ),
    "not a hub id": (
        {"corpus.sources": [{"hub": "a/b/c", "license": "mit"}]}, "corpus.sources[0].hub", "neither a path"
    ),
    "path under hub": (
        {"corpus.sources": [{"hub": "texts", "license": "mit"}]}, "corpus.sources[0].hub", "write `path: texts`"
    ),
    "shares": ({"corpus.shares": {"textes": 1.0}}, "corpus.shares", "texts"),
    "evaluation set": (
        {"corpus.decontaminate.against": [{"path": "gsm8k.jsonl"}]}, "corpus.decontaminate.against[0]", "correct"
    ),
    "column of an evaluation set": (
        {"corpus.decontaminate.against": [{"path": "rows.jsonl", "columns": ["question"]}]},
        "corpus.decontaminate.against[0].columns",
        "question",
    ),
    "example texts": (
        {"corpus.rules.classifier": {"good": "fine", "bad": "texts"}}, "corpus.rules.classifier", "correct `path`"
    ),
    "language": ({"corpus.rules.language": {"keep": ["klingon"]}}, "corpus.rules.language", "klingon"),
    "slurm without partition": ({"corpus.executor": "slurm"}, "corpus: executor is slurm", "partition"),
    # Tokenizer
    "vocabulary": ({"tokenizer.vocab_size": 100}, "tokenizer: vocab_size is 100", "at least 320"),
    "tokenizer text": ({"tokenizer.data": ["nowhere"]}, "tokenizer.data[0]", "correct `path`"),
    "tokenizer folder": ({"tokenizer.use": "./nowhere"}, "tokenizer.use", ""),
    "tokenizer file": ({"tokenizer.use": "nowhere.model"}, "tokenizer.use", "no file"),
    "tokenizer to compare": ({"tokenizer.compare": ["nobody/nothing"]}, "tokenizer.compare[0]", "correct the name"),
    "chat template": ({"tokenizer.chat_template": "nowhere.jinja"}, "tokenizer.chat_template", "chatml"),
    "chat template that does not parse": ({"tokenizer.chat_template": "broken.jinja"}, "tokenizer", "endfor"),
    "chat template without marks": ({"tokenizer.chat_template": "plain.jinja"}, "tokenizer", "generation"),
    # Model
    "model type": ({"model": {"model_type": "lama"}}, "model: model_type: 'lama'", "did you mean llama"),
    "heads": ({"model.num_attention_heads": 5}, "model", ""),
    "key-value heads": ({"model.num_key_value_heads": 3}, "model", ""),
    "rope": ({"model.rope_parameters": {"rope_type": "yran"}}, "model", "yarn"),
    "small vocabulary of the model": ({"model.vocab_size": 100}, "model.vocab_size", "leave it out"),
    "attention": ({"model.attn_implementation": "flash"}, "model", ""),
    # Pretraining
    "batch": ({"pretrain.tokens_per_step": 1000}, "pretrain.tokens_per_step", "try 896 or 1024"),
    "accumulation": (
        {"pretrain.training.gradient_accumulation_steps": 2}, "pretrain.training.gradient_acc", "leave it out"
    ),
    "context": ({"pretrain.context": 4096}, "pretrain.context", "max_position_embeddings"),
    "schedule": ({"pretrain.training.lr_scheduler_type": "cosin"}, "pretrain.training", "cosine"),
    "optimizer": ({"pretrain.training.optim": "adamx"}, "pretrain.training", "did you mean"),
    "precision": ({"pretrain.training.bf16": True, "pretrain.training.fp16": True}, "pretrain.training", "fp16"),
    "checkpoints kept": ({"pretrain.training.save_total_limit": 1}, "pretrain.training.save_total_limit", "at least 2"),
    "token in the recipe": ({"pretrain.training.hub_token": "hf_secret"}, "pretrain.training.hub_token", "HF_TOKEN"),
    "deepspeed file": ({"pretrain.training.deepspeed": "nowhere.json"}, "pretrain.training", "nowhere.json"),
    "push while offline": (
        {"pretrain.training.push_to_hub": True}, "pretrain.training.push_to_hub", "take push_to_hub out"
    ),
    "start_from": ({"pretrain.start_from": "runs/other/base"}, "pretrain.start_from", "runs/other/base"),
    "layers of nothing": ({"pretrain.keep_layers": [0]}, "pretrain: keep_layers", "start_from"),
    "tokens": ({"pretrain.tokens": "runs/other/tokens"}, "pretrain.tokens", "tokenize_corpus"),
    "tokenizer of another run": ({"pretrain.tokenizer": "runs/other/tokenizer"}, "pretrain.tokenizer", "no folder"),
    "objective": ({"pretrain.objective": "masked"}, "pretrain.objective", "bert"),
    "batch ramp-up": ({"pretrain.batch_warmup": {"start": 100, "steps": 2}}, "pretrain.batch_warmup.start", "512"),
    "disk": ({"model.hidden_size": 1 << 17, "model.head_dim": 1 << 15}, "pretrain.training", "free some space"),
    # SFT
    "chat file": ({"sft.data": [{"path": "chat.jsonl", "license": "mit"}]}, "sft.data[0]", "correct `path`"),
    "chat columns": ({"sft.data": [{"path": "rows.jsonl", "license": "mit"}]}, "sft.data[0]", "known format"),
    "chat format": (
        {"sft.data": [{"path": "chats.jsonl", "license": "mit", "format": "orca"}]}, "sft.data[0]", "one of"
    ),
    "chat on the hub": (
        {"sft.data": [{"hub": "nobody/chats", "license": "mit"}]}, "sft.data[0].hub", "correct the name"
    ),
    "rows without an answer": ({"sft.data": [{"path": "halves.jsonl", "license": "mit"}]}, "sft.data[0]", "Correct"),
    "one question": ({"sft.data": [{"path": "one.jsonl", "license": "mit"}]}, "sft.data", "add data"),
    "SFT's loss": ({"sft.training.loss_type": "nll2"}, "sft.training", "'dft'"),
    "lora layers": ({"sft.lora.target_modules": ["qproj"]}, "sft.lora", "q_proj"),
    "lora rank": ({"sft.lora.r": 0}, "sft.lora", "r"),
    "quantised without a GPU": ({"sft.quantize": "4bit"}, "sft.quantize", "leave `quantize` out"),
    "quantised without adapters": ({"sft.quantize": "4bit", "sft.lora": ...}, "sft: quantize", "lora"),
    "model of another run": ({"sft.model": "runs/other/base"}, "sft.model", "runs/other/base"),
    "model on the hub": ({"sft.model": "nobody/nothing"}, "sft.model", "correct the name"),
    "longer than the context": ({"sft.training.max_length": 4096}, "sft.training.max_length", "lower it"),
    # Preferences and labels
    "pairs file": ({"dpo.data": [{"path": "pairs.jsonl", "license": "mit"}]}, "dpo.data[0]", "correct `path`"),
    "chats where pairs are needed": (
        {"dpo.data": [{"path": "chats.jsonl", "license": "mit"}]}, "dpo.data[0]", "rejected"
    ),
    "DPO's loss": ({"dpo.training.loss_type": ["ipoo"]}, "dpo: training.loss_type", "ipo"),
    "reference and adapters": (
        {"dpo.training.sync_ref_model": True, "dpo.lora": {"r": 4, "target_modules": "all-linear"}}, "dpo.training", ""
    ),
    "pairs of the reward model": (
        {"reward.data": [{"path": "rows.jsonl", "license": "mit"}]}, "reward.data[0]", "chosen"
    ),
    "labels": ({"kto.data": [{"path": "rows.jsonl", "license": "mit"}]}, "kto.data[0]", "label"),
    # Rewards
    "no reward": ({"grpo.reward_functions": [], "reward": ...}, "grpo", "name a reward_model"),
    "reward module": ({"grpo.reward_functions": ["nowhere:short"]}, "grpo.reward_functions", "folder you start from"),
    "reward function": ({"rloo.reward_functions": ["tiny_rewards:long"]}, "rloo.reward_functions", "has no long"),
    "no function": (
        {"ppo.reward_functions": ["tiny_rewards:not_a_function"]}, "ppo.reward_functions", "not a function"
    ),
    "reward model": ({"grpo.reward_model": "nobody/scores"}, "grpo.reward_model", "correct the name"),
    "group size": (
        {"grpo.reward_functions": ["tiny_rewards:short"], "grpo.training.num_generations": 3},
        "grpo.training",
        "divisible",
    ),
    "too few prompts": (
        {"rloo.reward_functions": ["tiny_rewards:short"], "rloo.training.per_device_train_batch_size": 4096},
        "rloo",
        "add data",
    ),
    # Evaluation
    "evaluated model": ({"evaluate.models": ["runs/other/base"]}, "evaluate.models[0]", "runs/other/base"),
    "text of a domain": (
        {"evaluate.domains": [{"name": "a", "path": "nowhere.txt"}]},
        "evaluate.domains[0]",
        "nowhere",
    ),
    "two domains of a name": (
        {"evaluate.domains": [{"name": "a", "path": "rows.jsonl"}, {"name": "a", "path": "rows.jsonl"}]},
        "evaluate.domains",
        "a name of its own",
    ),
    "folder of tasks": ({"evaluate.task_data": "nowhere"}, "evaluate.task_data", "nowhere"),
    "file of a task": ({"evaluate.tasks": [{"name": "piqa", "data": "nowhere"}]}, "evaluate.tasks[0].data", "nowhere"),
    "shots of a task": ({"evaluate.tasks": [{"name": "piqa", "shots": -1}]}, "evaluate.tasks[0]", "from 0"),
    "metric of a gate": (
        {"evaluate.gates": {"perplexty": "< 20"}},
        "evaluate.gates.perplexty",
        "did you mean perplexity",
    ),
    "bound of a gate": ({"evaluate.gates": {"perplexity": "20"}}, "evaluate.gates.perplexity", 'in quotes: "< 20"'),
    "no model": ({"evaluate.models": []}, "evaluate.models", "leave it out"),
    "tokens of the evaluation": ({"evaluate.tokens": -1}, "evaluate.tokens", "at least 0"),
    "no questions": (
        {"evaluate.questions": [{"path": "nowhere.jsonl", "license": "mit"}]},
        "evaluate.questions[0]",
        "nowhere.jsonl",
    ),
    "questions without answers": (
        {"evaluate.questions": [{"path": "halves.jsonl", "license": "mit"}]},
        "evaluate.questions[0]",
        "a question has no answer",
    ),
}  # fmt: skip


# Those that the first check tells: it needs no library.
TOLD_FIRST = {
    "no questions",
    "unknown section", "unknown key", "unknown library key", "unknown lora key", "wrong type", "missing key",
    "missing section", "no data", "share out of range", "missing folder", "no licence", "path under hub",
    "evaluation set", "example texts", "language", "slurm without partition", "vocabulary", "tokenizer text",
    "tokenizer file", "chat template", "model type", "start_from", "layers of nothing", "tokens",
    "tokenizer of another run", "chat file", "chat format", "quantised without adapters", "model of another run",
    "pairs file", "DPO's loss", "evaluated model", "no model", "tokens of the evaluation", "text of a domain",
    "two domains of a name", "folder of tasks", "file of a task", "shots of a task", "metric of a gate",
    "bound of a gate",
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes") / "inputs"
    write_inputs(folder, documents=8)
    (folder / "empty").mkdir()
    (folder / "blank").mkdir()
    (folder / "blank" / "a.txt").write_text("", encoding="utf-8")
    (folder / "blank" / "b.jsonl").write_text("\n\n", encoding="utf-8")
    (folder / "rows.jsonl").write_text('{"text": "Some text.", "number": 1}\n', encoding="utf-8")
    (folder / "broken.jsonl").write_text('{"text": "Some\n{"text": \n', encoding="utf-8")
    (folder / "halves.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}\n' * 3, encoding="utf-8")
    chat = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}
    (folder / "one.jsonl").write_text(json.dumps(chat) + "\n", encoding="utf-8")
    (folder / "broken.jinja").write_text("{% for message in messages %}", encoding="utf-8")
    (folder / "plain.jinja").write_text(
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}<|im_end|>\n{% endfor %}",
        encoding="utf-8",
    )
    (folder / "tiny_rewards.py").write_text(REWARDS, encoding="utf-8")
    return folder


@pytest.fixture
def folder(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(inputs)
    monkeypatch.syspath_prepend(str(inputs))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    yield inputs


def write_recipe(folder: Path, stages: set[str], changes: dict[str, Any]) -> Path:
    """The tiny recipe with the sections of `stages` and the changed keys; `...` takes a key out."""
    tree = parse_yaml(RECIPE)
    del tree["sft"], tree["dpo"]
    tree |= {stage: section for stage, section in (STAGES | {"sft": SFT, "dpo": DPO}).items() if stage in stages}
    tree = parse_yaml(dump_yaml(tree))
    for key, value in changes.items():
        if value is ...:
            *sections, last = key.split(".")
            section = tree
            for name in sections:
                section = section[name]
            section.pop(last, None)
        else:
            set_key(tree, key, value)
    path = folder / "recipe.yaml"
    path.write_text(dump_yaml(tree), encoding="utf-8")
    return path


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_is_found_by_its_key_with_its_remedy(mistake: str, folder: Path, tmp_path: Path) -> None:
    changes, beginning, remedy = MISTAKES[mistake]
    stages = {key.split(".")[0] for key in changes} & {*STAGES, "sft", "dpo"}
    recipe = write_recipe(folder, stages, changes)

    run = Run([str(recipe)])
    first = Findings()
    check_sections(run, list_folders(run), first)
    findings = check_run(run, tmp_path)

    assert len(findings.problems) == 1, findings.problems
    assert findings.problems[0].startswith(beginning), findings.problems
    assert remedy in findings.problems[0]
    assert first.problems == (findings.problems if mistake in TOLD_FIRST else [])
    assert not (folder / "runs").exists()


def test_a_recipe_without_a_mistake_has_no_problem(folder: Path, tmp_path: Path) -> None:
    recipe = write_recipe(folder, {*STAGES, "sft", "dpo"}, {})
    findings = check_run(Run([str(recipe)]), tmp_path)
    assert findings.problems == []
    assert findings.notes == []


COLUMN_REWARDS = """
def needs_answer(completions, answer, **columns):
    return [1.0 if wanted in completion[0]["content"] else 0.0 for completion, wanted in zip(completions, answer)]

def raises(completions, **columns):
    raise RuntimeError("no such thing")
"""


@pytest.mark.parametrize("stage", ["grpo", "rloo", "ppo"])
def test_rewards_are_called_on_the_rows_of_the_recipe_and_on_no_others(
    stage: str, folder: Path, tmp_path: Path
) -> None:
    (folder / "column_rewards.py").write_text(COLUMN_REWARDS, encoding="utf-8")
    rows = [{"prompt": f"What is {n} plus 1?", "answer": str(n + 1)} for n in range(40)]
    (folder / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    sums = {f"{stage}.data": [{"path": "sums.jsonl", "license": "mit"}], f"{stage}.reward_model": None, "reward": ...}

    names = ["column_rewards:needs_answer"]
    findings = check_run(
        Run([str(write_recipe(folder, {stage}, sums | {f"{stage}.reward_functions": names}))]), tmp_path
    )
    assert findings.problems == [] and findings.notes == []

    names = ["column_rewards:raises", "column_rewards:needs_answer", "column_rewards:nothing"]
    (tmp_path / "again").mkdir()
    recipe = write_recipe(folder, {stage}, sums | {f"{stage}.reward_functions": names})
    findings = check_run(Run([str(recipe)]), tmp_path / "again")
    assert sorted("no such thing" in problem for problem in findings.problems) == [False, True]
    assert sum("has no nothing" in problem for problem in findings.problems) == 1


def test_a_reward_model_beside_reward_functions_is_counted_among_the_weights(folder: Path, tmp_path: Path) -> None:
    changes = {
        "grpo.reward_functions": ["tiny_rewards:short"],
        "grpo.reward_model": "rewards",
        "grpo.training.reward_weights": [1.0, 2.0],
    }
    (folder / "rewards").mkdir(exist_ok=True)
    findings = check_run(Run([str(write_recipe(folder, {"grpo"}, changes))]), tmp_path)
    assert findings.problems == [] and findings.notes == []

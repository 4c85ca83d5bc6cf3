"""A stock chat model, whose template has no generation marks, in every stage that needs none, on rows with tools."""

import json

import pytest

from hf_llm.model.load import load_tokenizer
from tests.aligned_recipe import chat_model, facts, run_stage

# Short, as the tiny model's context is; calls are written as Qwen 2.5's template does.
TEMPLATE = (
    "{%- if tools %}{{- '<|im_start|>system\n' + (tools | tojson) + '<|im_end|>\n' }}{%- endif %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + (m.content or '') }}"
    "{%- if 'tool_calls' in m %}{%- for call in m.tool_calls %}"
    "{{- call.function.name + (call.function.arguments | tojson) }}{%- endfor %}{%- endif %}{{- '<|im_end|>\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
REWARDS = """
def checked(prompts, completions, answer, tools, level, **columns):
    assert all(json.loads(listed)[0]["name"] == "f" for listed in tools)
    assert [int(one) for one in answer] == level and "completion_ids" in columns
    return [float(len(completion[0]["content"])) for completion in completions]

import json
"""
TOOLS = [{"name": "f"}]


@pytest.fixture(scope="module")
def stock(tiny_life, tmp_path_factory):
    """A folder with a chat model of another template outside the run, and rows with tools for every stage."""
    folder = chat_model(tiny_life, tmp_path_factory.mktemp("stock"))
    (folder / "runs/tiny/sft").rename(folder / "stock")
    tokenizer = load_tokenizer(folder / "stock")
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "stock")

    (folder / "rewards.py").write_text(REWARDS)
    pairs = []
    for number in range(20):
        call = {"type": "function", "function": {"name": "f", "arguments": {"n": number} if number % 2 else {"m": "x"}}}
        chosen = [{"role": "assistant", "content": None, "tool_calls": [call]}]
        pairs.append({"prompt": f"Is it {number}?", "chosen": chosen, "rejected": "no no", "tools": TOOLS})
    write(folder / "pairs.jsonl", pairs)
    write(folder / "prompts.jsonl", [
        {"prompt": f"Is it {number}?", "answer": number, "level": number, "tools": TOOLS} for number in range(20)
    ])  # fmt: skip
    return folder


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))


TRAINING = "max_steps: 2, per_device_train_batch_size: 2, logging_steps: 1, report_to: none, bf16: false"


@pytest.mark.parametrize("stage", ["dpo", "kto", "reward", "grpo", "rloo", "ppo"])
def test_it_is_trained_with_its_tools(stage, stock):
    rollout = stage in ("grpo", "rloo", "ppo")
    training = TRAINING
    if rollout:
        training += ", max_completion_length: 8"
        training += ", num_ppo_epochs: 1, num_mini_batches: 1" if stage == "ppo" else ", num_generations: 2"
    arguments = [
        f"--{stage}.data=[{{path: {'prompts' if rollout else 'pairs'}.jsonl, license: mit}}]",
        f"--{stage}.model=stock",
        f"--{stage}.training={{{training}}}",
    ]
    if rollout:
        arguments.append(f"--{stage}.reward_functions=[rewards:checked]")
    done = run_stage(stage, *arguments, folder=stock)
    assert done.code == 0, done.output
    rows = facts(stock / "runs/tiny" / stage)["rows"]
    assert rows["kept"] == (40 if stage == "kto" else 20)
    assert rows.get("columns") == (["level"] if rollout else None)


def test_sft_asks_for_marks(stock):
    done = run_stage("sft", "--sft.model=stock", folder=stock)
    assert done.code == 2 and "the chat template marks no assistant text" in done.output, done.output


def test_tools_that_the_template_leaves_out_are_refused(stock):
    tokenizer = load_tokenizer(stock / "stock")
    tokenizer.chat_template = TEMPLATE.replace("(tools | tojson)", "'tools'")
    tokenizer.save_pretrained(stock / "deaf")
    for path in (stock / "stock").iterdir():
        if path.is_file() and not (stock / "deaf" / path.name).exists():
            (stock / "deaf" / path.name).symlink_to(path)
    data = "--dpo.data=[{path: pairs.jsonl, license: mit}]"
    done = run_stage("dpo", data, "--dpo.model=deaf", "--name=deaf", folder=stock)
    assert done.code == 2 and "tools or tool calls, which the model's chat template does not render" in done.output

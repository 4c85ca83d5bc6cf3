"""What a run prints: every line is one of ours, so nothing of the libraries that a reader cannot act on."""

import re
import subprocess
import sys

import pytest

from tests.aligned_recipe import chat_model, run_stage
from tests.posttraining.test_reward_functions import PPO

NUMBER = r"[-+]?[\d.,]+(e[-+]?\d+)?"

# How each line that we print begins. A new line of ours is added here; a library's is removed at its cause, or added to
# LIBRARY_NOTICES of core/console.py with the reason.
DATA_LINES = [
    r"texts: ",  # a source: what was there, what was kept
    r"(digits|white space|words): '",  # how the tokenizer cuts
    r"  tokenizer  bytes/token ",
    r"  (this run|source \S+:|language \S+:) ",
]
TRAINING_LINES = [
    r"\S+\.jsonl: [\d,]+ rows kept",
    r"training on [\d,]+ rows, evaluating on ",
    r"evaluating every [\d,]+ steps, ",
    r"\w+\.training\.learning_rate \S+: usual for ",
    r"\s+kept truncated  too long ",
    r"[\s\d,]+  chats\.jsonl$",
    r"[\d,]+ rows to train on, ",
    r"\w+: \d+ layers, torch\.",  # the model's summary
    r"  (norms|attention|MLP|embeddings|head|total) ",
    r"\s{20,}\S",  # a line of the summary that goes on
    rf"  {NUMBER} FLOPs to train on a token",
    r"MFU is measured against ",
    r"measured on this machine, forward and backward of ",
    r"about \S+ (s|min|h)\b.* on this machine: ",
    r"how long it takes shows in the log after the first steps: ",
    r"starting; checkpoints go to runs/",
    r"step \d+/\d+  ",
    r"\[step \d+\] ",
    r"trained to step \d+; this session took ",
    r"\*\*\* WARNING: (the model does not stop|this training )",
]
RUN_LINES = [
    r"== \w+ ==$",
    r"training takes about ",
    r"(base|sft|dpo): (test split|sources of the corpus|answers|questions|speed)$",
    r"runs/tiny(/\w+)?( is complete$|: )",
    r"evaluating runs/tiny/",
    r"  (model|base|sft|dpo) ",
    r"  (corpus|tokenizer|tokens|evaluation|report) +[\d.]+ s  ",
    r"  What is red\?$",
    r"    (base|sft|dpo) +\| ",
    r"The report: runs/tiny/report/index.html$",
    r"Next:$",
    r"  python -m hf_llm\.",
]


def unknown_lines(output: str, patterns: list[str]) -> list[str]:
    """The lines that no pattern knows, without empty ones."""
    known = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    return [line for line in output.splitlines() if line.strip() and not known.match(line)]


def test_unknown_lines_are_found():
    notice = "Failed to load /site-packages/torchao/_C.so: Could not load this library"
    bar = "Saving the dataset (1/1 shards): 100%|####| 54/54 [00:00<00:00, 22579.25 examples/s]"
    ours = "starting; checkpoints go to runs/tiny/sft"
    assert unknown_lines("\n".join([notice, "", ours, bar]), TRAINING_LINES) == [notice, bar]


def test_a_whole_run_prints_only_lines_of_ours_and_none_beside_them(tiny_life):
    """From the corpus to the report, with the imports of all libraries."""
    output = (tiny_life / "output.txt").read_text(encoding="utf-8")
    assert unknown_lines(output, DATA_LINES + TRAINING_LINES + RUN_LINES) == []
    assert (tiny_life / "errors.txt").read_text(encoding="utf-8").strip() == ""
    assert "\n\n\n" not in output


@pytest.mark.parametrize("stage", ["reward", "kto", "grpo", "ppo"])
def test_a_stage_prints_only_lines_of_ours(tiny_life, tmp_path, stage):
    folder = chat_model(tiny_life, tmp_path)
    (folder / "rewards.py").write_text(
        "def length(completions, **columns):\n    return [len(str(c)) for c in completions]\n"
    )
    rewarded = {
        "grpo": ["--grpo.reward_functions=[rewards:length]"],
        "ppo": [*PPO, "--ppo.reward_functions=[rewards:length]"],
    }
    done = run_stage(stage, *rewarded.get(stage, []), folder=folder)
    assert done.code == 0, done.output
    assert unknown_lines(done.output, TRAINING_LINES + RUN_LINES) == []


def test_warnings_that_a_user_can_act_on_are_still_printed():
    code = """
import hf_llm, logging, warnings
logging.getLogger("torchao").warning("Skipping import of cpp extensions due to incompatible torch version.")
logging.getLogger("torchao").warning("Failed to load _C.so")
warnings.warn("another property is deprecated", FutureWarning)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "incompatible torch version" in done.stderr
    assert "another property is deprecated" in done.stderr
    assert "Failed to load" not in done.stderr

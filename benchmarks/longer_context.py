"""Pretraining that goes on at four times the context, as `recipes/examples/long_context.yaml` does it, on real text.

    HF_LLM_DATA=... python benchmarks/longer_context.py

A small model learns WikiText-2 at 256 tokens by `python -m hf_llm.pretrain`; then `pretrain.start_from` takes it on for
100 steps at 1,024 tokens with YaRN, and for as many tokens at 256 without. Printed are bits per byte of the validation
split by position, in windows of 1,024 tokens; of the first model also with YaRN switched on and nothing trained.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel

from hf_llm.data.tokens.token_dataset import TokenWindows
from hf_llm.model.load import load_model

SHORT, LONG, TOKENS_PER_STEP = 256, 1024, 4096
SPANS = ((0, SHORT), (SHORT, 2 * SHORT), (2 * SHORT, LONG))
YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": LONG / SHORT,
    "original_max_position_embeddings": SHORT,
}
RECIPE = """
name: short
seed: 1
corpus:
  sources: [{{path: {data}/wikitext2/train.part1.txt, license: cc-by-sa-3.0}}]
tokenizer: {{vocab_size: 4096}}
model:
  hidden_size: 256
  intermediate_size: 704
  num_hidden_layers: 4
  num_attention_heads: 4
  max_position_embeddings: 256
pretrain:
  evaluation_tokens: 65536
  training: {{optim: muon, report_to: none, save_strategy: "no"}}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=600, help="of 2,048 tokens at the short context")
    parser.add_argument("--more", type=int, default=100, help="steps of 4,096 tokens afterwards")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "recipe.yaml").write_text(RECIPE.format(data=os.environ["HF_LLM_DATA"]), encoding="utf-8")
        learn(root, "short", options.steps, 2048, "4e-3")
        on = ["--pretrain.start_from=runs/short/base", "--pretrain.tokens=runs/short/tokens"]
        on += ["--pretrain.tokenizer=runs/short/tokenizer"]
        longer = [
            f"--model.rope_parameters={YARN}",
            f"--model.max_position_embeddings={LONG}",
            f"--pretrain.context={LONG}",
        ]
        learn(root, "on", options.more, TOKENS_PER_STEP, "1e-3", *on)
        learn(root, "longer", options.more, TOKENS_PER_STEP, "1e-3", *on, *longer)
        windows = TokenWindows(root / "runs/short/tokens", "validation", LONG)
        print("| | " + " | ".join(f"{start} to {end}" for start, end in SPANS) + " |\n|--|--|--|--|")
        for title, name, scaling in (
            ("trained at 256", "short", None),
            ("YaRN switched on, nothing trained", "short", YARN),
            (f"{options.more} steps more at 256", "on", None),
            (f"{options.more} steps more at 1,024, YaRN", "longer", None),
        ):
            found = bits_by_span(model_of(root / "runs" / name / "base", scaling), windows)
            print(f"| {title} | " + " | ".join(f"{bits:.3f}" for bits in found) + " |", flush=True)


def learn(root: Path, name: str, steps: int, tokens: int, rate: str, *settings: str) -> None:
    """One pretraining by the command."""
    given = {"max_steps": steps, "learning_rate": rate, "warmup_steps": max(1, steps // 15)}
    keys = [f"--pretrain.training.{key}={value}" for key, value in given.items()]
    command = [sys.executable, "-m", "hf_llm.pretrain", "recipe.yaml", f"--name={name}"]
    subprocess.run([*command, f"--pretrain.tokens_per_step={tokens}", *keys, *settings], cwd=root, check=True)


def model_of(folder: Path, scaling: dict | None) -> PreTrainedModel:
    """The model, with other `rope_parameters` if there are any."""
    config = AutoConfig.from_pretrained(folder)
    if scaling:
        config.rope_parameters, config.max_position_embeddings = scaling, LONG
    return load_model(folder, config=config).eval()


@torch.no_grad()
def bits_by_span(model: PreTrainedModel, windows: TokenWindows) -> list[float]:
    """Bits per byte of the tokens predicted at the positions of each of SPANS."""
    total = torch.zeros(LONG - 1)
    for index in range(len(windows)):
        tokens = windows[index]["input_ids"][None]
        logits = model(tokens).logits[:, :-1].float()
        total += torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")[0]
    bits = total / len(windows) / math.log(2) / windows.bytes_per_token
    return [bits[start : min(end, LONG - 1)].mean().item() for start, end in SPANS]


if __name__ == "__main__":
    main()

"""The mean of the last checkpoints of a pretraining against the last one, on held-out text (docs/lab.md).

    HF_LLM_DATA=... python benchmarks/averaging.py

A model of about 0.9M parameters learns WikiText-2 at a constant learning rate, with a checkpoint every `--every` steps.
Then the last 2, 4, 8 are averaged by `hf_llm.average_checkpoints` and scored by `hf_llm.evaluate`. A second training,
of as many tokens, lets the learning rate fall over the steps that the 8 checkpoints span: what averaging stands in for.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TAKEN = (2, 4, 8)  # checkpoints
RECIPE = """
name: constant
seed: 1
corpus:
  sources: [{{path: {data}/wikitext2/train.part1.txt, license: cc-by-sa-3.0}}]
tokenizer: {{vocab_size: 2048}}
model:
  hidden_size: 128
  intermediate_size: 352
  num_hidden_layers: 3
  num_attention_heads: 4
  num_key_value_heads: 4
  max_position_embeddings: 128
pretrain:
  tokens_per_step: 1024
  evaluation_tokens: 16384
  samples: {{prompts: []}}
  training:
    max_steps: {steps}
    learning_rate: {rate}
    lr_scheduler_type: warmup_stable_decay
    lr_scheduler_kwargs: {{num_decay_steps: 0}}
    warmup_steps: 20
    save_steps: {every}
    save_total_limit: 8
    logging_steps: 50
    eval_steps: {steps}
    report_to: none
evaluate: {{tokens: 65536, prompts: []}}
"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--rate", type=float, default=4e-3)
    return parser.parse_args()


def call(module: str, *arguments: str, folder: Path) -> None:
    subprocess.run([sys.executable, "-m", f"hf_llm.{module}", *arguments], cwd=folder, check=True)


def main() -> None:
    arguments = parse()
    data = Path(os.environ["HF_LLM_DATA"]).resolve()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / "r.yaml").write_text(RECIPE.format(data=data, **vars(arguments)), encoding="utf-8")
        call("pretrain", "r.yaml", folder=folder)
        names = [f"mean{last}" for last in TAKEN]
        for last, name in zip(TAKEN, names, strict=True):
            output = f"runs/constant/{name}"
            call("average_checkpoints", "runs/constant/base", f"--last={last}", f"--output={output}", folder=folder)
        decay = f"--pretrain.training.lr_scheduler_kwargs.num_decay_steps={7 * arguments.every}"
        shared = [f"--pretrain.{key}=runs/constant/{key}" for key in ("tokens", "tokenizer")]
        call("pretrain", "r.yaml", "--name=decayed", decay, *shared, folder=folder)
        models = [*(f"runs/constant/{name}" for name in ("base", *names)), "runs/decayed/base"]
        call("evaluate", "r.yaml", f"--evaluate.models=[{', '.join(models)}]", folder=folder)
        results = json.loads((folder / "runs/constant/evaluation/results.json").read_text(encoding="utf-8"))
        for entry in results["models"].values():
            print(f"{entry['path']:<24} {entry['bits_per_byte']:.4f} bits per byte")


if __name__ == "__main__":
    main()

"""What each stage of alignment does to a model: reward, distance from the SFT model, length, on held-out prompts.

    HF_LLM_DATA=... python benchmarks/alignment.py                      # about 20 minutes on two idle CPU cores
    HF_LLM_DATA=... python benchmarks/alignment.py my.yaml --answers 100

Runs every stage of the recipe (recipes/examples/alignment.yaml; complete stages are skipped), then lets every model
answer the prompts of the pairs that the reward model was not trained on, one sampled answer each. Prints a table with
95% intervals (bootstrap over prompts; Wilson's for shares). The KL is that of each answer to the SFT model, exact over
the vocabulary, summed over the answer's tokens.
"""

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import hf_llm.reward
from hf_llm.core.manifest import read_manifest
from hf_llm.data.chat.loaders import load_preferences
from hf_llm.human_eval.preference_statistics import bootstrap_interval, wilson_interval
from hf_llm.inference.generate import generation_stop_ids
from hf_llm.model.load import load_model, load_tokenizer
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.stages import LANGUAGE_MODELS
from hf_llm.posttraining.reward_functions import Conversation, RewardModel
from hf_llm.tokenization.chat_encoding import encode_chat

RECIPE = "recipes/examples/alignment.yaml"
BATCH = 32  # answers at once


@dataclass
class Measured:
    """Of one model, a value for each prompt."""

    rewards: torch.Tensor
    lengths: torch.Tensor  # tokens, with the one that ends the answer
    ended: torch.Tensor
    kl: torch.Tensor  # nats


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default=RECIPE)
    parser.add_argument("--answers", type=int, default=1_000_000, help="prompts at most")
    parser.add_argument("--tokens", type=int, default=48, help="of an answer at most")
    parser.add_argument("--seed", type=int, default=0, help="of the sampling")
    return parser.parse_args()


def held_out(recipe: str, room: int, tokenizer: PreTrainedTokenizerBase, count: int) -> list[dict]:
    """The first `count` pairs that the reward model was not trained on and whose prompts have at most `room` tokens."""
    loaded = Run([recipe]).read(hf_llm.reward.Recipe)
    section = loaded.reward
    _, rows, _ = load_preferences(section.data, section.evaluation_share, loaded.seed, section.allow_drop)
    return [row for row in rows if len(encode_chat(tokenizer, row["prompt"])[0]) <= room][:count]


@torch.no_grad()
def answers_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], limit: int, seed: int
) -> list[list[int]]:
    """One answer to each prompt, sampled from the model's own distribution, up to its first end-of-turn token."""
    torch.manual_seed(seed)
    stops, answers = set(generation_stop_ids(model, tokenizer)), []
    for start in range(0, len(prompts), BATCH):
        batch = tokenizer.pad({"input_ids": prompts[start : start + BATCH]}, padding_side="left", return_tensors="pt")
        generated = model.generate(**batch, do_sample=True, temperature=1.0, top_k=0, max_new_tokens=limit)
        for row in generated[:, batch["input_ids"].shape[1] :].tolist():
            end = next((place for place, token in enumerate(row) if token in stops), len(row) - 1)
            answers.append(row[: end + 1])
    return answers


@torch.no_grad()
def kl_of(
    model: PreTrainedModel, reference: PreTrainedModel, prompts: list[list[int]], answers: list[list[int]]
) -> torch.Tensor:
    """KL divergence of `model` from `reference` over each answer, in nats."""
    found = []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids, places = torch.tensor([prompt + answer]), slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
        ours, theirs = (each(ids).logits[0, places].log_softmax(-1) for each in (model, reference))  # token, vocabulary
        found.append((ours.exp() * (ours - theirs)).sum())
    return torch.stack(found)


def said(texts: list[str]) -> list[Conversation]:
    return [[{"role": "assistant", "content": text}] for text in texts]


def measure(folder: Path, sft: Path, judge: RewardModel, rows: list[dict], options: argparse.Namespace) -> Measured:
    model, reference, tokenizer = load_model(folder).eval(), load_model(sft).eval(), load_tokenizer(sft)
    prompts = [encode_chat(tokenizer, row["prompt"], add_generation_prompt=True)[0] for row in rows]
    answers = answers_of(model, tokenizer, prompts, options.tokens, options.seed)
    texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
    stops = set(generation_stop_ids(model, tokenizer))
    return Measured(
        torch.tensor(judge([row["prompt"] for row in rows], said(texts))),
        torch.tensor([float(len(answer)) for answer in answers]),
        torch.tensor([float(answer[-1] in stops) for answer in answers]),
        kl_of(model, reference, prompts, answers),
    )


def interval(values: torch.Tensor) -> str:
    """The mean and its 95% interval."""
    low, high = bootstrap_interval(len(values), lambda weights: weights @ values.double().numpy() / len(values))
    return f"{values.mean():.2f} ({low:.2f} to {high:.2f})"


def table(found: dict[str, Measured]) -> str:
    lines = [
        "| model | reward | KL to SFT, nats | better than SFT's answer | tokens | ended |",
        "|--|--|--|--|--|--|",
    ]
    for name, one in found.items():
        better = "" if name == "sft" else wins(one.rewards, found["sft"].rewards)
        lines.append(
            f"| {name} | {interval(one.rewards)} | {interval(one.kl)} | {better} "
            f"| {one.lengths.mean():.1f} | {one.ended.mean():.0%} |"
        )
    return "\n".join(lines)


def wins(rewards: torch.Tensor, others: torch.Tensor) -> str:
    """How often the one is better, equal ones being half a win, and the 95% interval."""
    won = ((rewards > others).sum() + 0.5 * (rewards == others).sum()).item()
    low, high = wilson_interval(won, len(rewards))
    return f"{won / len(rewards):.0%} ({low:.0%} to {high:.0%})"


def main() -> None:
    options = parse()
    subprocess.run([sys.executable, "-m", "hf_llm.run", options.recipe], check=True)
    run = Run([options.recipe])
    tokenizer, judge = (
        load_tokenizer(run.folder("sft")),
        RewardModel(run.folder("reward"), load_tokenizer(run.folder("sft"))),
    )
    room = judge.model.config.max_position_embeddings - options.tokens - 8  # for the marks around an answer
    rows = held_out(options.recipe, room, tokenizer, options.answers)
    models = [name for name in LANGUAGE_MODELS if run.is_requested(name)]
    for name in [*models, "reward"]:
        manifest = read_manifest(run.root / name)
        print(f"{name:<8} {manifest['seconds']:>6.0f} s  {manifest['headline']}")
    found = {name: measure(run.root / name, run.folder("sft"), judge, rows, options) for name in models}
    print(f"\n{len(rows)} held-out prompts, answers of at most {options.tokens} tokens\n\n{table(found)}")
    prompts = [row["prompt"] for row in rows]
    for name in ("chosen", "rejected"):
        print(f"\nthe data's own {name} answers: {interval(torch.tensor(judge(prompts, [row[name] for row in rows])))}")


if __name__ == "__main__":
    main()

"""Tokens per second of a pretraining step against those of nanoGPT, nanochat and litgpt, at equal sizes on a CPU.

    python benchmarks/peers.py --nanogpt ../nanoGPT --nanochat ../nanochat --litgpt ../litgpt
    python benchmarks/peers.py --nanogpt ../nanoGPT --size 4M --rounds 3
    python benchmarks/peers.py --nanochat ../nanochat --litgpt ../litgpt --compile --rounds 2

The folders are clones of the public repositories. Everything takes steps of 8 windows of 256 random tokens, each with
its own model (`peer_models.py`), optimizer and precision, clips its gradients where it does so by itself, and runs in a
process of its own in every round. The two steps at the beginning (more with --compile) are not timed.

- `hf_llm` is the trainer of `hf_llm.pretrain` with its callbacks and guards, reading token shards.
- nanoGPT is its `train.py`, which prints the time of every step: AdamW, float32 as always on a CPU.
- nanochat is the loop of its `base_train.py`: Muon and AdamW, float32 as always on a CPU. One batch is made before;
  its own script tokenizes text meanwhile.
- litgpt is the loop of its `pretrain.py`: AdamW, not fused as always on a CPU, bf16 autocast as by default. One batch
  is made before, and torch does what Lightning's Fabric does on one device.

nanochat and litgpt always compile their models, nanoGPT unless told not to (its README does so for CPUs). Here nothing
is compiled without --compile, and with it every model is, and nanochat's optimizer.
"""

import argparse
import json
import os
import pickle
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from peer_models import build_litgpt, build_nanochat, check_folder, replace_missing_packages

SIZES = {
    "quickstart": {
        **{"vocab_size": 1024, "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 4},
        **{"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256},
    },
    "4M": {
        **{"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4},
        **{"num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 256},
    },
}
WINDOWS = 8
# What is compared, and what it differs in; the first is what the ratios are to.
WAYS = {
    "hf_llm, AdamW, float32": {"bf16": False},
    "hf_llm, Muon, float32": {"bf16": False, "optim": "muon"},
    "hf_llm, AdamW, bf16": {"bf16": True},
    "nanoGPT, AdamW, float32": {},
    "nanochat, Muon, float32": {},
    "litgpt, AdamW, float32": {"bf16": False},
    "litgpt, AdamW, bf16": {"bf16": True},
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for peer in ("nanogpt", "nanochat", "litgpt"):
        parser.add_argument(f"--{peer}", metavar="FOLDER", help="folder of its repository")
    parser.add_argument("--size", choices=list(SIZES), default="quickstart")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), help="a selection; the first is always there")
    parser.add_argument("--steps", type=int, default=20, help="timed optimizer steps of a round")
    parser.add_argument("--warmup-steps", type=int, default=2, help="steps before them")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--way", choices=list(WAYS), help=argparse.SUPPRESS)
    return parser.parse_args()


def train_hf_llm(options: argparse.Namespace, settings: dict) -> float:
    """Return the seconds of the timed steps."""
    import numpy as np
    from generation import UNUSED_IDS, make_tokenizer
    from transformers import TrainerCallback

    from hf_llm.data.tokens.token_shards import INDEX
    from hf_llm.pipeline.run import StageOutput
    from hf_llm.pretrain import PretrainSection, Recipe, build_pretraining_trainer
    from hf_llm.training.fault_tolerance.resume import train_with_guards
    from hf_llm.training.objectives import resolve_objective

    steps = options.warmup_steps + options.steps
    sizes = SIZES[options.size]
    context = sizes["max_position_embeddings"]
    ends = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        # Random tokens in shards, and a tokenizer of as many words
        tokenizer = make_tokenizer(sizes["vocab_size"] + UNUSED_IDS)
        tokenizer.save_pretrained(f"{folder}/tokenizer")
        tokens = Path(folder, "tokens")
        tokens.mkdir()
        ids = np.random.default_rng(0).integers(0, sizes["vocab_size"], (steps + 1) * WINDOWS * context, np.uint16)
        splits = {}
        for split in ("train", "validation"):
            ids.tofile(tokens / f"{split}.bin")
            entry = {"file": f"{split}.bin", "tokens": len(ids), "documents": 1, "bytes": len(ids)}
            splits[split] = [entry | {"sources": {"": len(ids)}, "languages": {"": len(ids)}}]
        index = {"dtype": "uint16", "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id}
        (tokens / INDEX).write_text(json.dumps(index | {"splits": splits}), encoding="utf-8")

        training = {
            **{"max_steps": steps, "eval_steps": 10 * steps, "per_device_train_batch_size": WINDOWS},
            **{"report_to": "none", "torch_compile": options.compile, **settings},
        }
        section = PretrainSection(tokens_per_step=WINDOWS * context, training=training)
        recipe = Recipe(name="peers", pretrain=section, model=sizes)
        sources = {"tokens": tokens, "tokenizer": f"{folder}/tokenizer"}
        output = StageOutput(path=Path(folder, "base"), folder="base", settings={}, inputs={}, sources=sources)
        trainer = build_pretraining_trainer(recipe, resolve_objective({"pretrain": {}, "model": {}}), output)
        trainer.add_callback(Clock())
        train_with_guards(trainer, fingerprint={}, spikes=section.spikes)
    return ends[-1] - ends[options.warmup_steps - 1]


def train_nanogpt(options: argparse.Namespace, settings: dict) -> float:
    """Return the seconds of the timed steps, as train.py prints them."""
    import numpy as np

    sizes = SIZES[options.size]
    steps = options.warmup_steps + options.steps
    with tempfile.TemporaryDirectory() as folder:
        ids = np.random.default_rng(0).integers(0, sizes["vocab_size"], 1 << 17, np.uint16)
        for split in ("train", "val"):
            ids.tofile(f"{folder}/{split}.bin")
        Path(folder, "meta.pkl").write_bytes(pickle.dumps({"vocab_size": sizes["vocab_size"]}))
        values = {
            **{"device": "cpu", "dtype": "float32", "compile": options.compile, "dataset": folder, "out_dir": folder},
            **{"n_layer": sizes["num_hidden_layers"], "n_head": sizes["num_attention_heads"]},
            **{"n_embd": sizes["hidden_size"], "block_size": sizes["max_position_embeddings"]},
            **{"batch_size": WINDOWS, "gradient_accumulation_steps": 1, "max_iters": steps - 1, "eval_iters": 1},
        }
        done = subprocess.run(
            [sys.executable, "train.py", *(f"--{key}={value}" for key, value in values.items())],
            cwd=check_folder(options.nanogpt, "train.py"),
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    milliseconds = [float(value) for value in re.findall(r"time ([\d.]+)ms", done.stdout)]
    assert len(milliseconds) == steps, done.stdout
    return sum(milliseconds[options.warmup_steps :]) / 1000


def train_nanochat(options: argparse.Namespace, settings: dict) -> float:
    """Return the seconds of the timed steps."""
    import gc

    import torch

    replace_missing_packages()
    sizes = SIZES[options.size]
    torch.manual_seed(0)
    model = build_nanochat(options.nanochat, sizes)
    optimizer = model.setup_optimizer()
    if options.compile:
        model = torch.compile(model, dynamic=False)
    tokens = torch.randint(sizes["vocab_size"], (WINDOWS, sizes["max_position_embeddings"] + 1))
    inputs = tokens[:, :-1].contiguous()
    targets = tokens[:, 1:].contiguous()

    def make_step() -> None:
        loss = model(inputs, targets)
        train_loss = loss.detach()
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        optimizer.step()
        model.zero_grad(set_to_none=True)
        train_loss.item()

    gc.collect()
    gc.freeze()
    gc.disable()
    return time_steps(make_step, options)


def train_litgpt(options: argparse.Namespace, settings: dict) -> float:
    """Return the seconds of the timed steps."""
    import torch

    replace_missing_packages()
    sizes = SIZES[options.size]
    torch.manual_seed(0)
    model = build_litgpt(options.litgpt, sizes)
    from litgpt.utils import chunked_cross_entropy, instantiate_torch_optimizer

    optimizer = instantiate_torch_optimizer("AdamW", model.parameters(), fused=False)
    if options.compile:
        model = torch.compile(model)
    tokens = torch.randint(sizes["vocab_size"], (WINDOWS, sizes["max_position_embeddings"] + 1))

    def make_step() -> None:
        inputs = tokens[:, :-1].contiguous().long()
        targets = tokens[:, 1:].contiguous().long()
        with torch.autocast("cpu", torch.bfloat16, enabled=settings["bf16"]):
            logits = model(inputs)
        loss = chunked_cross_entropy(logits.float(), targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()

    return time_steps(make_step, options)


def time_steps(make_step: Callable[[], None], options: argparse.Namespace) -> float:
    """Return the seconds of the steps after the warm-up."""
    for _ in range(options.warmup_steps):
        make_step()
    start = time.perf_counter()
    for _ in range(options.steps):
        make_step()
    return time.perf_counter() - start


TRAIN = {"hf_llm": train_hf_llm, "nanoGPT": train_nanogpt, "nanochat": train_nanochat, "litgpt": train_litgpt}


def choose_ways(options: argparse.Namespace) -> list[str]:
    """Return the ways whose repository is given."""
    ways = []
    for number, way in enumerate(WAYS):
        peer = way.partition(",")[0]
        is_given = peer == "hf_llm" or getattr(options, peer.lower())
        is_chosen = number == 0 or options.ways is None or way in options.ways
        if is_given and is_chosen:
            ways.append(way)
    return ways


def main() -> None:
    options = parse()
    if options.way:
        seconds = TRAIN[options.way.partition(",")[0]](options, WAYS[options.way])
        print(json.dumps(seconds))
        return

    ways = choose_ways(options)
    if options.nanochat or options.litgpt:
        replace_missing_packages()
    tokens = options.steps * WINDOWS * SIZES[options.size]["max_position_embeddings"]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "TORCHDYNAMO_DISABLE": str(int(not options.compile))}
    speeds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(options.rounds):
        start = number % len(ways)
        for way in ways[start:] + ways[:start]:
            done = subprocess.run(
                [sys.executable, *sys.argv, "--way", way], env=environment, capture_output=True, text=True
            )
            if done.returncode:
                sys.exit(f"{way} failed:\n{done.stdout}{done.stderr}")
            speeds[way].append(tokens / json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1}  {way:<24} {speeds[way][-1]:>8,.0f} tokens/s", flush=True)

    print(f"\n{options.size}, {'compiled' if options.compile else 'not compiled'}, medians of {options.rounds} rounds")
    print(f"{'':<24} {'tokens/s':>9} {'ratio':>6}")
    for way in ways:
        ratios = [speed / bound for speed, bound in zip(speeds[way], speeds[ways[0]], strict=True)]
        print(f"{way:<24} {statistics.median(speeds[way]):>9,.0f} {statistics.median(ratios):>6.2f}")


if __name__ == "__main__":
    main()

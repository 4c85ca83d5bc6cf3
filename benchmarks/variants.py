"""The model's switches at equal wall-clock budget: bits per byte on held-out text, and tokens per second.

    python benchmarks/variants.py texts/*.txt                          # every variant once
    python benchmarks/variants.py texts/*.txt --variants default gpt2 alibi --seeds 0 1 2 --at-once 2

The width of each variant is set so that it has `--parameters` without the embeddings (a mixture of experts: active
ones). First all are timed in one process, step by step in turn on all cores. Then each trains by itself, on the same
bytes in the same order, for as many steps as it makes in the time that the default takes for `--steps`: whatever else
the machine does during a training changes nothing. A row of a table for each, as they end. With `--results FILE` times
and rows are kept, and a second start goes on from there.
"""

import argparse
import json
import math
import os
import queue
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

EXPERTS = {"num_experts": 8, "num_experts_per_tok": 2}
GELU = {"norm_type": "layer_norm", "use_gated_mlp": False, "hidden_act": "gelu_new", "use_qk_norm": False}
VARIANTS = {
    "default": {},
    "gpt2": {**GELU, "positions": "learned", "attention_bias": True, "mlp_bias": True},
    "learned": {"positions": "learned"},
    "alibi": {"positions": "alibi"},
    "no positions": {"positions": "none"},
    "multi-query": {"num_key_value_heads": 1},
    "no q/k norm": {"use_qk_norm": False},
    "window 128": {"sliding_window": 128},
    "window 128, every fourth full": {
        "sliding_window": 128,
        "layer_types": [*["sliding_attention"] * 3, "full_attention"],
    },
    "strided": {"layer_types": ["strided_attention"], "sparse_block_size": 32, "sparse_stride": 4},
    "local and global": {
        "layer_types": ["local_global_attention"],
        "sliding_window": 64,
        "global_attention_every": 32,
    },
    "sinks": {"layer_types": ["sink_attention"], "sliding_window": 64, "num_sink_tokens": 4},
    "GELU": {"use_gated_mlp": False, "hidden_act": "gelu"},
    "GeGLU": {"hidden_act": "gelu"},
    "ReLU^2": {"use_gated_mlp": False, "hidden_act": "relu2"},
    "LayerNorm": {"norm_type": "layer_norm"},
    "post-norm": {"norm_position": "post"},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "dropout 0.1": {"embd_pdrop": 0.1, "resid_pdrop": 0.1, "attention_dropout": 0.1},
    "untied": {"tie_word_embeddings": False},
    "shared layers": {"num_hidden_groups": 2},
    "soft-cap 15": {"final_logit_softcapping": 15.0},
    "experts, loss": EXPERTS,
    "experts, bias": {**EXPERTS, "expert_balancing": "bias"},
    "experts, bias, shared": {**EXPERTS, "expert_balancing": "bias", "n_shared_experts": 1},
}
LAYERS, HEAD_DIM = 8, 32


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", nargs="+", help="UTF-8 files; the last twentieth of their bytes is held out")
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=400, help="of the default variant")
    parser.add_argument("--rounds", type=int, default=9, help="of timing")
    parser.add_argument("--parameters", type=float, default=5e6, help="a token multiplies, embeddings left out")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8, help="windows of a step")
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="muon")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--bf16", action="store_true", help="autocast, for a device with units for it")
    parser.add_argument("--at-once", type=int, default=1, help="trainings side by side (Linux)")
    parser.add_argument("--results", type=Path, help="JSON lines to resume from and to append to")
    parser.add_argument("--time", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def config_of(variant: str, options: argparse.Namespace, width: int):
    from hf_llm.model.configuration_hf_llm import HfLlmConfig

    switches = VARIANTS[variant]
    inner = width * 8 // 3 if switches.get("use_gated_mlp", True) else width * 4
    active = switches.get("num_experts_per_tok", 1) + switches.get("n_shared_experts", 0)
    return HfLlmConfig(
        vocab_size=256,
        hidden_size=width,
        intermediate_size=inner // (active if "num_experts" in switches else 1) // 8 * 8,
        num_hidden_layers=LAYERS,
        num_attention_heads=width // HEAD_DIM,
        head_dim=HEAD_DIM,
        max_position_embeddings=options.context,
        **switches,
    )


def fitted(variant: str, options: argparse.Namespace):
    """The configuration whose arithmetic per token is nearest to that of `--parameters` that multiply."""
    import torch

    from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM
    from hf_llm.model.summary import flops_per_token

    def arithmetic(config) -> int:
        with torch.device("meta"):
            return flops_per_token(HfLlmForCausalLM(config), 0)

    widths = range(4 * HEAD_DIM, 24 * HEAD_DIM, HEAD_DIM)
    configs = [config_of(variant, options, width) for width in widths]
    return min(configs, key=lambda config: abs(arithmetic(config) - 6 * options.parameters))


def prepare(options: argparse.Namespace):
    """The text to train on and the text held out, as bytes."""
    import torch

    from hf_llm.hardware.runtime import device_type, keep_freed_memory, use_all_cores

    if device_type() == "cpu":
        use_all_cores()
        keep_freed_memory()
    data = b"".join(Path(path).read_bytes() for path in options.texts)
    text = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()
    held_out = len(text) // 20
    return text[:-held_out], text[-held_out:]


def time_all(options: argparse.Namespace) -> None:
    """Print the median seconds of a step of each variant as JSON, measured in turn."""
    text, _ = prepare(options)
    runs = {variant: Run(variant, 0, text, options) for variant in VARIANTS}
    for run in runs.values():
        run.step(1.0), run.step(1.0)
    seconds = {variant: [] for variant in runs}
    for _ in range(options.rounds):
        for variant, run in runs.items():
            began = time.perf_counter()
            run.step(1.0)
            seconds[variant].append(time.perf_counter() - began)
    print(json.dumps({variant: statistics.median(found) for variant, found in seconds.items()}))


def one_run(options: argparse.Namespace) -> None:
    """Train one variant in this process, with a short warm-up and a cosine, and print what came of it as JSON."""
    variant, seed, steps = options.one[0], int(options.one[1]), int(options.one[2])
    text, held_out = prepare(options)
    run = Run(variant, seed, text, options)
    for step in range(steps):
        run.step((0.1 + 0.45 * (1 + math.cos(math.pi * step / steps))) * min(1.0, (step + 1) / 50))
    result = {
        "parameters": run.model.num_parameters(),
        "bits_per_byte": bits_per_byte(run.model, held_out, options),
        "exports_to": run.model.config.exports_to,
    }
    print(json.dumps(result))


class Run:
    """A model of a variant, its optimizer and its batches."""

    def __init__(self, variant: str, seed: int, text, options: argparse.Namespace):
        import torch

        from hf_llm.hardware.runtime import device_type
        from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM
        from hf_llm.training.muon import Muon, muon_matrices

        self.text, self.options = text, options
        torch.manual_seed(seed)
        self.model = HfLlmForCausalLM(fitted(variant, options)).to(device_type()).train()
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        rest = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        rate, betas = options.learning_rate, (0.9, 0.95)
        if options.optimizer == "muon":
            self.optimizer = Muon(groups, rate, muon_matrices(self.model), betas=betas, eps=1e-8)
        else:
            self.optimizer = torch.optim.AdamW(groups, rate, betas=betas, fused=True)
        self.order = torch.Generator().manual_seed(seed)

    def step(self, share: float) -> None:
        """An optimizer step at `share` of the learning rate."""
        import torch

        options, model = self.options, self.model
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * share
        starts = torch.randint(0, len(self.text) - options.context, (options.rows,), generator=self.order)
        rows = torch.stack([self.text[start : start + options.context] for start in starts.tolist()]).to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=options.bf16):
            loss = model(rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def bits_per_byte(model, text, options: argparse.Namespace) -> float:
    """Of at most 512 windows of `text`, without gradients."""
    import torch

    model.eval()
    context = options.context
    windows = text[: len(text) // context * context].view(-1, context)[:512].to(model.device)
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=options.bf16):
        losses = [model(rows, labels=rows).loss.item() for rows in windows.split(16)]
    return sum(losses) / len(losses) / math.log(2)


def main() -> None:
    options = parse()
    if options.time:
        time_all(options)
    elif options.one:
        one_run(options)
    else:
        table(options)


def table(options: argparse.Namespace) -> None:
    """Time, train and print."""
    kept = Kept(options.results)
    how = [options.optimizer, options.bf16, options.rows, options.context, options.parameters]
    seconds = kept.get(["seconds", *how], lambda: child("--time"))
    shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
    cores = sorted(os.sched_getaffinity(0)) if options.at_once > 1 else []
    for share in range(options.at_once):
        shares.put(set(cores[share :: options.at_once]))

    def run(variant: str, seed: int) -> str:
        steps = round(options.steps * seconds["default"] / seconds[variant])
        held = shares.get()
        r = kept.get(
            [variant, seed, steps, options.learning_rate, *how],
            lambda: child("--one", variant, seed, steps, cores=held),
        )
        shares.put(held)
        rate = options.rows * options.context / seconds[variant]
        return (
            f"| {variant} | {seed} | {r['parameters']:,} | {steps} | {rate:,.0f} | {r['bits_per_byte']:.3f} "
            f"| {r['exports_to']} |"
        )

    print("| variant | seed | parameters | steps | tokens/s | bits per byte | exports to |\n|--|--|--|--|--|--|--|")
    with ThreadPoolExecutor(options.at_once) as side_by_side:
        runs = [side_by_side.submit(run, variant, seed) for seed in options.seeds for variant in options.variants]
        for finished in runs:
            print(finished.result(), flush=True)


class Kept:
    """Results in a file of JSON lines, by what they are of; without a file nothing is kept."""

    def __init__(self, path: Path | None):
        self.path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path and path.exists() else []
        self.found = {json.dumps(row["of"]): row["result"] for row in map(json.loads, lines)}

    def get(self, of: list[Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        if json.dumps(of) not in self.found:
            self.found[json.dumps(of)] = result = make()
            if self.path:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"of": of, "result": result}) + "\n")
        return self.found[json.dumps(of)]


def child(*words: object, cores: set[int] | None = None) -> dict[str, Any]:
    """What this program prints in a process of its own, held to `cores` if there are any."""
    held = (lambda: os.sched_setaffinity(0, cores)) if cores else None
    command = [sys.executable, *sys.argv, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=held)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()

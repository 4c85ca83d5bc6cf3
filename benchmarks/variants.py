"""The model's switches at equal wall-clock budget: bits per byte on held-out text, and tokens per second.

    python benchmarks/variants.py texts/*.txt --seconds 480                        # every variant once
    python benchmarks/variants.py texts/*.txt --variants default gpt2 alibi --seeds 0 1 2

Each variant trains by itself in a process, on the same bytes in the same order, with its width set so that it has
`--parameters` without the embeddings (a mixture of experts: active ones). One row of a table each, as they end. With
`--results FILE` each is also written there, and what is there already is not trained again.
"""

import argparse
import json
import math
import subprocess
import sys
import time
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
    parser.add_argument("--seconds", type=float, default=480, help="of training, for each variant and seed")
    parser.add_argument("--parameters", type=float, default=5e6, help="a token multiplies, embeddings left out")
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--rows", type=int, default=8, help="windows of a step")
    parser.add_argument("--optimizer", choices=["adamw", "muon"], default="muon")
    parser.add_argument("--learning-rate", type=float, default=4e-3)
    parser.add_argument("--bf16", action="store_true", help="autocast, for a device with units for it")
    parser.add_argument("--results", type=Path, help="JSON lines to add to and to go on from")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
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
    from hf_llm.model.printout import flops_per_token

    def arithmetic(config) -> int:
        with torch.device("meta"):
            return flops_per_token(HfLlmForCausalLM(config), 0)

    widths = range(4 * HEAD_DIM, 24 * HEAD_DIM, HEAD_DIM)
    configs = [config_of(variant, options, width) for width in widths]
    return min(configs, key=lambda config: abs(arithmetic(config) - 6 * options.parameters))


def one_run(options: argparse.Namespace) -> None:
    """Train one variant in this process and print what came of it as JSON."""
    import torch

    from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM
    from hf_llm.training.device import device_type, keep_freed_memory, use_all_cores

    variant, seed = options.one[0], int(options.one[1])
    device = device_type()
    if device == "cpu":
        use_all_cores()
        keep_freed_memory()
    data = b"".join(Path(path).read_bytes() for path in options.texts)
    text = torch.frombuffer(bytearray(data), dtype=torch.uint8).long()
    held_out = len(text) // 20
    torch.manual_seed(seed)
    model = HfLlmForCausalLM(fitted(variant, options)).to(device)
    began = time.perf_counter()
    steps = train(model, text[:-held_out], options, seed)
    rate = steps * options.rows * options.context / (time.perf_counter() - began)
    result = {
        "parameters": model.num_parameters(),
        "steps": steps,
        "tokens_per_second": rate,
        "bits_per_byte": bits_per_byte(model, text[-held_out:], options),
        "exports_to": model.config.exports_to,
    }
    print(json.dumps(result))


def train(model, text, options: argparse.Namespace, seed: int) -> int:
    """A short warm-up and a cosine over the seconds there are, in place. Returns the steps made."""
    import torch

    from hf_llm.training.muon import Muon, matrices_of

    matrices = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    if options.optimizer == "muon":
        optimizer = Muon(groups, options.learning_rate, matrices_of(model), betas=(0.9, 0.95), eps=1e-8)
    else:
        optimizer = torch.optim.AdamW(groups, options.learning_rate, betas=(0.9, 0.95), fused=True)
    order = torch.Generator().manual_seed(seed)
    model.train()
    began, steps = time.perf_counter(), 0
    while (passed := (time.perf_counter() - began) / options.seconds) < 1:
        for group in optimizer.param_groups:
            cosine = 0.1 + 0.45 * (1 + math.cos(math.pi * passed))
            group["lr"] = options.learning_rate * cosine * min(1.0, (steps + 1) / 50)
        starts = torch.randint(0, len(text) - options.context, (options.rows,), generator=order)
        rows = torch.stack([text[start : start + options.context] for start in starts.tolist()]).to(model.device)
        with torch.autocast(model.device.type, torch.bfloat16, enabled=options.bf16):
            loss = model(rows, labels=rows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        steps += 1
    return steps


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
    if options.one:
        one_run(options)
        return
    made = {}
    if options.results and options.results.exists():
        rows = map(json.loads, options.results.read_text(encoding="utf-8").splitlines())
        made = {json.dumps(row["of"]): row for row in rows}
    print("| variant | seed | parameters | steps | tokens/s | bits per byte | exports to |\n|--|--|--|--|--|--|--|")
    for seed in options.seeds:
        for variant in options.variants:
            of = [variant, seed, options.optimizer, options.learning_rate, options.seconds, options.bf16]
            r = made.get(json.dumps(of)) or trained(variant, seed)
            if options.results and json.dumps(of) not in made:
                with options.results.open("a", encoding="utf-8") as results:
                    results.write(json.dumps({"of": of, **r}) + "\n")
            print(
                f"| {variant} | {seed} | {r['parameters']:,} | {r['steps']} | {r['tokens_per_second']:,.0f} "
                f"| {r['bits_per_byte']:.3f} | {r['exports_to']} |",
                flush=True,
            )


def trained(variant: str, seed: int) -> dict[str, Any]:
    """What came of one training, in a process of its own."""
    command = [sys.executable, *sys.argv, "--one", variant, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()

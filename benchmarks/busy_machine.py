"""How much a training loses where other programs use the processor too.

    python benchmarks/busy_machine.py --seconds 8 --rounds 3 --load 2

Trains the quickstart's model for some seconds, idle and beside a load of our own (processes that count), in turns, for
each way to wait in OpenMP. The share of the idle rate over the share of the processor that the training got is 1 where
what is taken costs no more than what is taken.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

VARIANTS = {
    "6,000 turns, then sleep (default)": {},
    "300,000 turns (OpenMP's default)": {"GOMP_SPINCOUNT": "300000"},
    "sleep at once": {"OMP_WAIT_POLICY": "PASSIVE"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
TOKENS_PER_STEP = 2048
CONTEXT = 256


def train(seconds: float) -> None:
    """Make steps for some seconds; print tokens, wall seconds and processor seconds as JSON."""
    import torch

    from hf_llm.hardware.runtime import has_bf16, keep_freed_memory
    from hf_llm.model.configuration_hf_llm import HfLlmConfig
    from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM
    from hf_llm.training.muon import Muon, muon_matrices

    keep_freed_memory()
    torch.manual_seed(0)
    config = HfLlmConfig(
        vocab_size=1024,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
    )
    model = HfLlmForCausalLM(config)
    groups = [{"params": [parameter], "weight_decay": 0.1} for parameter in model.parameters()]
    optimizer = Muon(groups, lr=1e-3, matrices=muon_matrices(model), betas=(0.9, 0.95), eps=1e-8)
    ids = torch.randint(1024, (TOKENS_PER_STEP // CONTEXT, CONTEXT))
    steps = 0
    began, processor_seconds = time.monotonic(), 0.0
    while time.monotonic() - began < seconds or steps == 0:
        with torch.autocast("cpu", torch.bfloat16, enabled=has_bf16("cpu")):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
        if steps == 3:  # the first steps warm up
            began, usage = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
            processor_seconds = usage.ru_utime + usage.ru_stime
    usage = resource.getrusage(resource.RUSAGE_SELF)
    result = {
        "tokens": (steps - 3) * TOKENS_PER_STEP,
        "wall": time.monotonic() - began,
        "processor": usage.ru_utime + usage.ru_stime - processor_seconds,
    }
    print(json.dumps(result))


def measure(settings: dict[str, str], seconds: float, load: int) -> dict[str, float]:
    """Train in a process of its own, beside `load` processes that count."""
    counting = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(load)]
    try:
        done = subprocess.run(
            [sys.executable, __file__, "--train", str(seconds)],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        for process in counting:
            process.kill()
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--load", type=int, default=2, help="processes that count")
    parser.add_argument("--train", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(options.train)
        return

    cores = len(os.sched_getaffinity(0))
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in VARIANTS}
    for _ in range(options.rounds):
        for name, settings in VARIANTS.items():
            idle = measure(settings, options.seconds, 0)
            busy = measure(settings, options.seconds, options.load)
            idle_rate, busy_rate = idle["tokens"] / idle["wall"], busy["tokens"] / busy["wall"]
            share = busy["processor"] / busy["wall"] / cores
            rows[name].append((idle_rate, busy_rate / idle_rate, share))
    print(f"| waiting | idle tokens/s | share of the idle rate beside {options.load} | of the processor | ratio |")
    print("|--|--|--|--|--|")
    for name, measured in rows.items():
        idle_rate, rate, share = (statistics.median(column) for column in zip(*measured, strict=True))
        ratio = statistics.median(rate / share for _, rate, share in measured)
        print(f"| {name} | {idle_rate:,.0f} | {rate:.2f} | {share:.2f} | {ratio:.2f} |")


if __name__ == "__main__":
    main()

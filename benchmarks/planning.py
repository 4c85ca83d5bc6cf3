"""The plan's peak memory and tokens per second against real training steps on this machine's CPU.

    python benchmarks/planning.py                 # all configurations, interleaved rounds, a process each
    python benchmarks/planning.py --only small --rounds 1
    python benchmarks/planning.py --clock processor    # on one core, by processor time: for a machine that is busy

`actual` memory is the peak resident memory of a process that trains the model with Trainer, above what it held after it
had imported everything and trained a toy; `predicted` comes from another process that never writes to a tensor
(`hf_llm.planning.memory.estimate_cpu_footprint`). `actual` speed is that of the fastest step of the same run;
`predicted` is what `hf_llm.planning.speed.measure_speed` says in the same round.
"""

import argparse
import gc
import itertools
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

SMALL = {"vocab_size": 4096, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4}
MIDDLE = {"vocab_size": 8192, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8}
WIDE = {"vocab_size": 32768, "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6}

# name -> model, windows of a micro-batch, tokens of a window, micro-batches of a step, checkpointing, optimizer
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "small": {"model": {**SMALL, "num_attention_heads": 4}, "batch": 8, "context": 256},
    "small, batch 16": {"model": {**SMALL, "num_attention_heads": 4}, "batch": 16, "context": 256},
    "small, adafactor": {"model": {**SMALL, "num_attention_heads": 4}, "batch": 8, "context": 256, "accumulation": 2,
                         "optim": "adafactor"},
    "grouped queries, sgd": {"model": {**MIDDLE, "num_attention_heads": 6, "num_key_value_heads": 2}, "batch": 2,
                             "context": 512, "optim": "sgd"},
    "long windows": {"model": {**MIDDLE, "num_attention_heads": 6}, "batch": 1, "context": 1024, "accumulation": 2},
    "long, checkpointing": {"model": {**MIDDLE, "num_attention_heads": 6}, "batch": 2, "context": 1024,
                            "checkpointing": True},
    "large vocabulary": {"model": {**WIDE, "num_attention_heads": 6}, "batch": 2, "context": 256, "optim": "sgd"},
    "large vocabulary, checkpointing": {"model": {**WIDE, "num_attention_heads": 6}, "batch": 2, "context": 512,
                                        "checkpointing": True},
    "small, bf16": {"model": {**SMALL, "num_attention_heads": 4}, "batch": 8, "context": 256, "bf16": True},
    "long, checkpointing, bf16": {"model": {**MIDDLE, "num_attention_heads": 6}, "batch": 2, "context": 1024,
                                  "checkpointing": True, "bf16": True},
    "llama": {"model_type": "llama", "model": {**SMALL, "num_attention_heads": 4}, "batch": 8, "context": 256},
}  # fmt: skip


def prepare(spec: dict[str, Any], folder: str) -> tuple[Any, Any]:
    """The model's config, and the training arguments."""
    import torch
    from transformers import TrainingArguments

    from hf_llm.hardware.runtime import use_all_cores
    from hf_llm.model.load import config_class

    if spec.get("clock") == "processor":
        torch.set_num_threads(1)
    else:
        use_all_cores()
    config = config_class({"model_type": spec.get("model_type", "hf_llm")})(
        **spec["model"], max_position_embeddings=spec["context"], tie_word_embeddings=True
    )
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=spec["batch"],
        gradient_accumulation_steps=spec.get("accumulation", 1),
        max_steps=spec.get("steps", 4),
        activation_checkpointing=spec.get("checkpointing", False),
        optim=spec.get("optim", "adamw_torch_fused"),
        bf16=spec.get("bf16", False),
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    return config, arguments


def predict(spec: dict[str, Any], folder: str) -> dict[str, float]:
    """Peak bytes and tokens per second, nothing trained."""
    import torch

    from hf_llm.planning.memory import estimate_cpu_footprint
    from hf_llm.planning.memory_estimate import build_planned_model
    from hf_llm.planning.speed import measure_speed

    config, arguments = prepare(spec, folder)
    batch, context, accumulation = spec["batch"], spec["context"], spec.get("accumulation", 1)
    build, autocast = partial(build_planned_model, config), torch.bfloat16 if arguments.bf16 else None
    _, growth = estimate_cpu_footprint(build, batch, context, arguments, autocast, accumulation > 1)
    found = {"bytes": growth}
    if spec.get("speed", True):
        speed = measure_speed(
            build_planned_model, config, batch, context, batch * accumulation, arguments, autocast=autocast
        )
        found["tokens_per_second"] = speed.tokens_per_second
    return found


def measure(spec: dict[str, Any], folder: str) -> dict[str, float]:
    """Train for a few steps."""
    import torch
    from transformers import Trainer, TrainerCallback

    from hf_llm.hardware.runtime import keep_freed_memory
    from hf_llm.planning.memory_estimate import build_planned_model

    keep_freed_memory()
    config, arguments = prepare(spec, folder)
    accumulation = spec.get("accumulation", 1)
    windows = spec["batch"] * accumulation * arguments.max_steps
    tokens = torch.randint(0, config.vocab_size, (windows, spec["context"]))
    ends = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.perf_counter())

    toy = type(config)(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1)
    rows = [{"input_ids": row % 64, "labels": row % 64} for row in tokens[:, :8]]
    Trainer(build_planned_model(toy), arguments, train_dataset=rows).train()
    gc.collect()
    before = resident("VmRSS")
    rows = [{"input_ids": row, "labels": row} for row in tokens]
    Trainer(build_planned_model(config), arguments, train_dataset=rows, callbacks=[Clock()]).train()
    fastest = min(later - earlier for earlier, later in itertools.pairwise(ends))
    rate = spec["batch"] * accumulation * spec["context"] / fastest
    return {"bytes": resident("VmHWM") - before, "tokens_per_second": rate}


def resident(key: str) -> int:
    """Bytes that Linux tells of this process: VmRSS now, VmHWM at most."""
    return int(re.search(key + r":\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def in_a_process(what: str, spec: dict[str, Any]) -> dict[str, float]:
    """`predict` or `measure` in a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--child", what, json.dumps(spec)], stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=CONFIGURATIONS)
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        with tempfile.TemporaryDirectory() as folder:
            work, spec = {"predict": predict, "measure": measure}[options.child[0]], json.loads(options.child[1])
            if spec.get("clock") == "processor":
                time.perf_counter = time.process_time  # before anything imports it
            print(json.dumps(work(spec, folder)))
        return
    names = [options.only] if options.only else list(CONFIGURATIONS)
    found = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names:
            spec = {**CONFIGURATIONS[name], "clock": options.clock}
            pair = [in_a_process(what, spec) for what in ("predict", "measure")]
            found[name].append(pair)
            print(f"round {number + 1}  {name:<32} {json.dumps(pair)}", flush=True)
    print(f"\n| {'configuration':<32} | predicted MB | actual | error | predicted tokens/s | actual | error |")
    print("|--|--|--|--|--|--|--|")
    for name, pairs in found.items():
        cells = []
        for key, unit in (("bytes", 1e6), ("tokens_per_second", 1)):
            predicted, actual = (statistics.median(pair[which][key] for pair in pairs) / unit for which in (0, 1))
            cells += [f"{predicted:,.0f}", f"{actual:,.0f}", f"{predicted / actual - 1:+.0%}"]
        print(f"| {name:<32} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

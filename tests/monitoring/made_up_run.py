"""A run's folder as trainings leave it, with numbers made up: a curve that falls, a spike, samples."""

import math
import random
import time
from pathlib import Path

from hf_llm.core.jsonl import alerts_file, append_row, metrics_file, replace_rows, samples_file

PARTS = {"embeddings": 0.5, "attention": 0.6, "mlp": 0.5, "norms": 0.1, "head": 0.3}


def made_up_run(root: Path, steps: int = 1200, most: int = 2000, seed: int = 0, final: float = 3.0) -> Path:
    """`root` with the stage `base` at step `steps` of `most`, and a short stage `sft`."""
    began = time.time() - 3600
    training(root / "base", steps, most, seed, final, began)
    training(root / "sft", 120, 400, seed + 1, 1.6, began - 7200, sft=True)
    append_row(alerts_file(root / "base"), spike(700, began))
    for step in range(200, steps + 1, 200):
        text = f" Paris, and its river\n<script>document.title='owned'</script> <b>runs</b>{' on' * (step // 200)}"
        append_row(samples_file(root / "base"), {"step": step, "prompt": "The capital of France is", "text": text})
    return root


def spike(step: int, began: float) -> dict:
    text = "loss spike: 5.912, usual is 3.614 ± 0.021"
    return {"step": step, "kind": "loss_spike", "text": text, "time": began + step}


def training(folder: Path, steps: int, most: int, seed: int, final: float, began: float, sft: bool = False) -> None:
    rng = random.Random(seed)
    facts = {"max_steps": most, "processes": 4, "device": "NVIDIA H200", "learning_rate": 6e-4, "started": began}
    rows = [{"training": facts}]
    for step in range(10, steps + 1, 10):
        rows.append(entry(step, most, rng, final, began, sft))
        if step % 200 == 0:
            loss = final + 7 * math.exp(-step / 180) + 0.06
            evaluation = {"step": step, "time": began + step, "eval_loss": loss, "eval_bits_per_byte": loss / 3.1}
            rows.append({**evaluation, "eval_perplexity": math.exp(loss), "eval_runtime": 12.3, "epoch": step / most})
    replace_rows(metrics_file(folder), rows)


def entry(step: int, most: int, rng: random.Random, final: float, began: float, sft: bool) -> dict:
    loss = final + 7 * math.exp(-step / 180) + rng.gauss(0, 0.03) + (2.3 if step == 700 else 0)
    norm = (0.4 + 3 * math.exp(-step / 90)) * math.exp(rng.gauss(0, 0.12)) * (9 if step == 700 else 1)
    rate = 6e-4 * min(1, step / 200) * (0.55 + 0.45 * math.cos(math.pi * step / most))
    found = {"step": step, "time": began + step, "loss": loss, "grad_norm": norm, "learning_rate": rate}
    found |= {f"grad_norm/{part}": norm * share * math.exp(rng.gauss(0, 0.1)) for part, share in PARTS.items()}
    found |= {"tokens_per_second": 412_000 * (1 + rng.gauss(0, 0.01)), "tokens_seen": step * 524_288, "mfu": 0.42}
    found |= {"memory_gib": 61.3, "memory_now_gib": 12.4, "perplexity": math.exp(loss), "epoch": step / most}
    found |= {"eta_seconds": (most - step) * 1.3, "device_hours": step * 4 / 3600, "cost": step * 4 / 3600 * 2.5}
    return {**found, "mean_token_accuracy": 0.4 + step / 1000, "entropy": 1.2} if sft else found

"""A run's folder as trainings leave it, with numbers made up: a curve that falls, a spike, samples."""

import math
import random
import time
from pathlib import Path

from hf_llm.core.jsonl import alerts_file, append_row, metrics_file, replace_rows, samples_file

PARTS = {"embeddings": 0.5, "attention": 0.6, "mlp": 0.5, "norms": 0.1, "head": 0.3}
SPIKE_STEP = 700


def write_made_up_run(
    root: Path, steps: int = 1200, max_steps: int = 2000, seed: int = 0, final_loss: float = 3.0
) -> Path:
    """Write `root` with the stage `base` at step `steps` of `max_steps`, and a short stage `sft`; returns `root`."""
    started = time.time() - 3600
    write_training(root / "base", steps, max_steps, seed, final_loss, started)
    write_training(root / "sft", 120, 400, seed + 1, 1.6, started - 7200, is_sft=True)

    text = "loss spike: 5.912, usual is 3.614 ± 0.021"
    alert = {"step": SPIKE_STEP, "kind": "loss_spike", "text": text, "time": started + SPIKE_STEP}
    append_row(alerts_file(root / "base"), alert)
    for step in range(200, steps + 1, 200):
        text = f" Paris, and its river\n<script>document.title='owned'</script> <b>runs</b>{' on' * (step // 200)}"
        append_row(samples_file(root / "base"), {"step": step, "prompt": "The capital of France is", "text": text})
    return root


def write_training(
    folder: Path, steps: int, max_steps: int, seed: int, final_loss: float, started: float, is_sft: bool = False
) -> None:
    rng = random.Random(seed)
    facts = {"max_steps": max_steps, "processes": 4, "device": "NVIDIA H200", "learning_rate": 6e-4, "started": started}
    rows = [{"training": facts}]
    for step in range(10, steps + 1, 10):
        rows.append(make_entry(step, max_steps, rng, final_loss, started, is_sft))
        if step % 200 == 0:
            rows.append(make_evaluation(step, max_steps, final_loss, started))
    replace_rows(metrics_file(folder), rows)


def make_entry(step: int, max_steps: int, rng: random.Random, final_loss: float, started: float, is_sft: bool) -> dict:
    is_spike = step == SPIKE_STEP
    loss = final_loss + 7 * math.exp(-step / 180) + rng.gauss(0, 0.03) + (2.3 if is_spike else 0)
    norm = (0.4 + 3 * math.exp(-step / 90)) * math.exp(rng.gauss(0, 0.12)) * (9 if is_spike else 1)
    device_hours = step * 4 / 3600
    entry = {
        "step": step,
        "time": started + step,
        "loss": loss,
        "grad_norm": norm,
        "learning_rate": 6e-4 * min(1, step / 200) * (0.55 + 0.45 * math.cos(math.pi * step / max_steps)),
        **{f"grad_norm/{part}": norm * share * math.exp(rng.gauss(0, 0.1)) for part, share in PARTS.items()},
        "tokens_per_second": 412_000 * (1 + rng.gauss(0, 0.01)),
        "tokens_seen": step * 524_288,
        "mfu": 0.42,
        "memory_gib": 61.3,
        "memory_now_gib": 12.4,
        "perplexity": math.exp(loss),
        "epoch": step / max_steps,
        "eta_seconds": (max_steps - step) * 1.3,
        "device_hours": device_hours,
        "cost": device_hours * 2.5,
    }
    if is_sft:
        entry |= {"mean_token_accuracy": 0.4 + step / 1000, "entropy": 1.2}
    return entry


def make_evaluation(step: int, max_steps: int, final_loss: float, started: float) -> dict:
    loss = final_loss + 7 * math.exp(-step / 180) + 0.06
    return {
        "step": step,
        "time": started + step,
        "eval_loss": loss,
        "eval_bits_per_byte": loss / 3.1,
        "eval_perplexity": math.exp(loss),
        "eval_runtime": 12.3,
        "epoch": step / max_steps,
    }

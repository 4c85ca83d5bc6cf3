"""Perplexity by position on texts up to four times as long as those of training: what ALiBi and RoPE scaling promise.

    python benchmarks/length.py                         # every way, the table and docs/images/length.svg
    python benchmarks/length.py --ways alibi rope --steps 200

Each way trains a small byte-level model on 128 bytes at a time of the documentation that came with Python, then reads
held-out text of 512 bytes, from position 0. RoPE scaling is switched on after training, as with a model that is there
already; `rope, yarn, 100 steps more` goes on for 100 steps at 512.
"""

import argparse
import copy
import math
from pathlib import Path
from pydoc_data.topics import topics

import torch

from hf_llm.hardware.runtime import device_type
from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM

TRAINED, LONGEST = 128, 512
SCALED = {"rope_theta": 10000.0, "factor": 4.0}
YARN = {**SCALED, "rope_type": "yarn", "original_max_position_embeddings": TRAINED}
# way -> (switches in training, rope_parameters in reading, steps more at the full length)
WAYS = {
    "learned": ({"positions": "learned", "max_position_embeddings": LONGEST}, None, 0),
    "none": ({"positions": "none"}, None, 0),
    "alibi": ({"positions": "alibi"}, None, 0),
    "rope": ({}, None, 0),
    "rope, linear": ({}, {**SCALED, "rope_type": "linear"}, 0),
    "rope, dynamic": ({}, {**SCALED, "rope_type": "dynamic"}, 0),
    "rope, yarn": ({}, YARN, 0),
    "rope, yarn, 100 steps more": ({}, YARN, 100),
    "window of 64": ({"sliding_window": 64}, None, 0),
}
SPANS = ((0, TRAINED), (TRAINED, 2 * TRAINED), (2 * TRAINED, LONGEST))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--rows", type=int, default=8, help="texts of a step")
    parser.add_argument("--hidden-size", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--output", type=Path, default=Path("docs/images/length.svg"))
    return parser.parse_args()


def texts() -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes to train on and bytes held out: the language reference, one topic in ten kept for reading."""
    names = sorted(topics)
    held_out = "".join(topics[name] for number, name in enumerate(names) if number % 10 == 0)
    train = "".join(topics[name] for number, name in enumerate(names) if number % 10)
    return tuple(torch.tensor(list(text.encode()), dtype=torch.long) for text in (train, held_out))


def rows_of(text: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    starts = torch.randint(0, len(text) - length, (rows,))
    return torch.stack([text[start : start + length] for start in starts])


def train(model: HfLlmForCausalLM, text: torch.Tensor, steps: int, rows: int, length: int, rate: float) -> None:
    """Adam with warm-up and a linear decay, in place."""
    optimizer = torch.optim.AdamW(model.train().parameters(), rate, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min((step + 1) / 50, 1.1 - step / steps)
        batch = rows_of(text, rows, length).to(model.device)
        model(batch, labels=batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def rescaled(model: HfLlmForCausalLM, rope_parameters: dict | None) -> HfLlmForCausalLM:
    """The same weights under other `rope_parameters`."""
    if rope_parameters is None:
        return model
    config = copy.deepcopy(model.config)
    # Dynamic scaling starts at max_position_embeddings; the others are told the length of training.
    longest = TRAINED if rope_parameters["rope_type"] == "dynamic" else LONGEST
    config = HfLlmConfig(**{**config.to_dict(), "rope_parameters": rope_parameters, "max_position_embeddings": longest})
    again = HfLlmForCausalLM(config).to(model.device)
    again.load_state_dict(model.state_dict())
    return again


@torch.no_grad()
def nats_by_position(model: HfLlmForCausalLM, text: torch.Tensor) -> torch.Tensor:
    """The mean loss at each position of held-out texts of LONGEST bytes, in nats."""
    rows = text[: len(text) // LONGEST * LONGEST].view(-1, LONGEST).to(model.device)
    total = torch.zeros(LONGEST - 1, device=model.device)
    for batch in rows.split(16):
        logits = model.eval()(batch).logits[:, :-1].float()
        total += torch.nn.functional.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none").sum(0)
    return (total / len(rows)).cpu()


def draw(curves: dict[str, torch.Tensor], path: Path) -> None:
    """Perplexity against position, the mean of every 32, on a logarithmic scale, as an SVG."""
    smooth = {way: nats[: len(nats) // 32 * 32].view(-1, 32).mean(1).tolist() for way, nats in curves.items()}
    low, high = min(map(min, smooth.values())), max(map(max, smooth.values()))

    def place(position: float, nats: float) -> tuple[float, float]:
        return 50 + 600 * position / LONGEST, 20 + 330 * (high - nats) / (high - low)

    parts = []
    for tick in range(0, LONGEST + 1, TRAINED):
        x, _ = place(tick, low)
        parts.append(f'<path d="M{x:.0f} 20V350" stroke="#ccc"/><text x="{x:.0f}" y="368">{tick}</text>')
    for step in range(5):
        nats = low + (high - low) * step / 4
        _, y = place(0, nats)
        parts.append(
            f'<path d="M50 {y:.0f}H650" stroke="#ccc"/><text x="5" y="{y + 4:.0f}">{math.exp(nats):.1f}</text>'
        )
    for number, (way, nats) in enumerate(smooth.items()):
        colour = f"hsl({number * 360 / len(smooth):.0f} 70% 42%)"
        points = " ".join("{:.1f},{:.1f}".format(*place(32 * i + 16, value)) for i, value in enumerate(nats))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="665" y="{40 + 20 * number}" fill="{colour}">{way}</text>')
    parts.append(f'<text x="250" y="388">position (trained on {TRAINED}); perplexity per byte</text>')
    style = 'font-family="sans-serif" font-size="12" style="background:white"'
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 880 400" {style}>' + "".join(parts) + "</svg>\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(svg, encoding="utf-8")


def main() -> None:
    options, device = parse(), device_type()
    train_text, held_out = texts()
    print(f"{len(train_text):,} bytes to train on, {len(held_out):,} held out, {device}, torch {torch.__version__}")
    sizes = {
        "vocab_size": 256,
        "hidden_size": options.hidden_size,
        "intermediate_size": options.hidden_size * 11 // 4,
        "num_hidden_layers": options.layers,
        "num_attention_heads": 4,
        "max_position_embeddings": TRAINED,
    }
    print("| way | " + " | ".join(f"{start} to {end}" for start, end in SPANS) + " |")
    trained, curves = {}, {}
    for way in options.ways:
        switches, scaling, more = WAYS[way]
        key = str(switches)
        if key not in trained:
            torch.manual_seed(0)
            trained[key] = HfLlmForCausalLM(HfLlmConfig(**sizes | switches)).to(device)
            train(trained[key], train_text, options.steps, options.rows, TRAINED, 2e-3)
        model = rescaled(copy.deepcopy(trained[key]), scaling)
        train(model, train_text, more, max(1, options.rows * TRAINED // LONGEST), LONGEST, 5e-4)
        curves[way] = nats_by_position(model, held_out)
        means = [math.exp(curves[way][start : min(end, LONGEST - 1)].mean()) for start, end in SPANS]
        print(f"| {way} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |", flush=True)
    draw(curves, options.output)


if __name__ == "__main__":
    main()

"""Time and memory of the model's chunked cross-entropy against `F.cross_entropy(head(hidden))`, forward and backward.

    python benchmarks/cross_entropy.py                 # a few sizes, on the GPU where there is one
    python benchmarks/cross_entropy.py 8192x768x32768  # tokens x hidden x vocabulary

Rounds are interleaved, so that all suffer alike from what else the machine does; ratios are those of the medians.
`terms` is the time with label smoothing and z-loss against that without. Memory is what a fresh process needs at its
peak beyond the inputs, and the gradients that stay.
"""

import multiprocessing
import re
import sys
import time
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

from hf_llm.model.modeling_hf_llm import HfLlmHead

SIZES = ("4096x256x8192", "2048x768x32768", "8192x768x32768")
ROUNDS = 5
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def plain(head: HfLlmHead, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(head(hidden).float().flatten(0, 1), labels.flatten(), reduction="sum")


def chunked(head: HfLlmHead, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return head(hidden, labels)[0]


def with_terms(head: HfLlmHead, hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return head(hidden, labels, label_smoothing=0.1, z_loss=1e-4)[0]


def inputs(size: str) -> tuple[HfLlmHead, torch.Tensor, torch.Tensor]:
    """A head in float32 (bfloat16 on a GPU), hidden states that want a gradient, and labels."""
    tokens, width, vocabulary = map(int, size.split("x"))
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    head = HfLlmHead(width, vocabulary, bias=False).to(DEVICE, dtype)
    hidden = torch.randn(1, tokens, width, device=DEVICE, dtype=dtype, requires_grad=True)
    return head, hidden, torch.randint(0, vocabulary, (1, tokens), device=DEVICE)


def seconds(loss, head: HfLlmHead, hidden: torch.Tensor, labels: torch.Tensor) -> float:
    head.weight.grad = hidden.grad = None
    start = time.perf_counter()
    loss(head, hidden, labels).backward()
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_megabytes(size: str, name: str) -> float:
    """Run in a process of its own: the highest memory of one pass, less what is there before and after it anyway."""
    head, hidden, labels = inputs(size)
    head.weight.grad, hidden.grad = torch.zeros_like(head.weight), torch.zeros_like(hidden)
    if DEVICE == "cuda":
        before = torch.cuda.memory_allocated()
        globals()[name](head, hidden, labels).backward()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    F.linear(hidden[:, :64], head.weight[:64]).sum().backward()  # wakes the threads and the libraries
    before = resident_peak()
    globals()[name](head, hidden, labels).backward()
    return resident_peak() - before


def resident_peak() -> float:
    """Megabytes this process has held at most. (Linux; getrusage would count the parent's memory too.)"""
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1e3


def main() -> None:
    print(f"{DEVICE}, {torch.get_num_threads()} threads, torch {torch.__version__}, {ROUNDS} interleaved rounds")
    times = f"{'plain':>8} {'chunked':>8} {'time':>6} {'terms':>6}"
    print(f"{'tokens x hidden x vocabulary':<30} {times} {'plain':>9} {'chunked':>9}")
    for size in sys.argv[1:] or SIZES:
        arguments = inputs(size)
        losses = (plain, chunked, with_terms)
        rounds = [[seconds(loss, *arguments) for loss in losses] for _ in range(ROUNDS + 1)][1:]
        slow, fast, more = (median(times) for times in zip(*rounds, strict=True))
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            held = [pool.apply(peak_megabytes, (size, name)) for name in ("plain", "chunked")]
        ratios = f"{fast / slow:>6.2f} {more / fast:>6.2f}"
        print(f"{size:<30} {slow:>7.3f}s {fast:>7.3f}s {ratios} {held[0]:>6.0f} MB {held[1]:>6.0f} MB")


if __name__ == "__main__":
    main()

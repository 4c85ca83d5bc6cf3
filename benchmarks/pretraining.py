"""Training tokens per second and peak memory of our pretraining against plain Trainer with transformers' own Qwen3.

    python benchmarks/pretraining.py                    # medians of interleaved rounds, one process each
    python benchmarks/pretraining.py --rounds 5 --hidden-size 384 --layers 6 --vocab-size 8192

Same sizes, same random tokens, same optimizer (fused AdamW), in float32 and, where the device has units for it, in
bf16. `plain` is what a short script around Trainer and Qwen3ForCausalLM does; `hf_llm` is what `hf_llm.pretrain` does,
which chooses bf16 where there are units; `malloc as it is` leaves out what training/device.py tells the C library, to
show its share.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time

WAYS = ("plain", "plain, bf16", "hf_llm", "hf_llm, bf16", "hf_llm, malloc as it is")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--steps", type=int, default=12, help="timed optimizer steps of a round, after two untimed ones"
    )
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--windows", type=int, default=16, help="windows of a micro-batch")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def one_round(options: argparse.Namespace) -> None:
    """Train in this process and print tokens per second and peak memory as JSON."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from hf_llm.hardware.runtime import device_type, keep_freed_memory, use_all_cores
    from hf_llm.model.configuration_hf_llm import HfLlmConfig
    from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM

    device = device_type()
    if device == "cpu":
        use_all_cores()
        if options.way in ("hf_llm", "hf_llm, bf16"):
            keep_freed_memory()
    torch.manual_seed(0)
    heads = options.hidden_size // 64
    sizes = {
        "vocab_size": options.vocab_size,
        "hidden_size": options.hidden_size,
        "intermediate_size": options.hidden_size * 11 // 4,
        "num_hidden_layers": options.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": 64,
        "max_position_embeddings": options.context,
        "tie_word_embeddings": True,
    }
    plain = options.way.startswith("plain")
    model = Qwen3ForCausalLM(Qwen3Config(**sizes)) if plain else HfLlmForCausalLM(HfLlmConfig(**sizes))
    tokens = torch.randint(0, options.vocab_size, (options.windows, options.context))
    rows = [{"input_ids": row, "labels": row} for row in tokens] * (options.steps + 2)
    ends = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if device == "cuda":
                torch.cuda.synchronize()
            ends.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            per_device_train_batch_size=options.windows,
            max_steps=options.steps + 2,
            use_cpu=device == "cpu",
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
            torch_compile=options.compile,
            bf16="bf16" in options.way,
        )
        Trainer(model, arguments, train_dataset=rows, callbacks=[Clock()]).train()
    speed = options.steps * tokens.numel() / (ends[-1] - ends[1])
    peak = (
        torch.cuda.max_memory_allocated()
        if device == "cuda"
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    )
    print(json.dumps({"tokens_per_second": speed, "gib": peak / 2**30}))


def bf16_here() -> bool:
    """Whether the device has units for it."""
    from hf_llm.hardware.runtime import device_type, has_bf16

    return has_bf16(device_type())


def main() -> None:
    options = parse()
    if options.way:
        return one_round(options)
    ways = [way for way in WAYS if "bf16" not in way or bf16_here()]
    found = {way: [] for way in ways}
    for number in range(options.rounds):
        for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
            done = subprocess.run(
                [sys.executable, *sys.argv, "--way", way], stdout=subprocess.PIPE, text=True, check=True
            )
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"round {number + 1}  {way:<24} {found[way][-1]['tokens_per_second']:>10,.0f} tokens/s", flush=True)
    base = statistics.median(entry["tokens_per_second"] for entry in found["plain"])
    print(f"\n{'':<24} {'tokens/s':>10} {'ratio':>6} {'peak GiB':>9}   medians of {options.rounds} rounds")
    for way, entries in found.items():
        speed, memory = (statistics.median(entry[key] for entry in entries) for key in ("tokens_per_second", "gib"))
        print(f"{way:<24} {speed:>10,.0f} {speed / base:>6.2f} {memory:>9.2f}")


if __name__ == "__main__":
    main()

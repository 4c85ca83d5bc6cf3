"""DPO tokens per second and peak memory of our stage's trainer against a plain TRL script with transformers' Qwen3.

    HF_LLM_DATA=... python benchmarks/preferences.py    # medians of interleaved rounds, one process each
    HF_LLM_DATA=... python benchmarks/preferences.py --rounds 2 --pairs 24

Same sizes, same pairs of hh_rlhf with the same chat template, same batch and optimizer, float32 on a CPU and bf16 on a
GPU, one epoch. `plain TRL` is DPOTrainer as its documentation writes it. Timed is all from the rows to the last step:
our reference is asked once, before training, and TRL's in every step. TRL's defaults recompute activations in the
backward pass (gradient checkpointing), ours do not, so each is shown both ways. Tokens are those of prompts and both
answers, padding not counted.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tuning import prepare, report

WAYS = {  # name -> whether it is ours, and training arguments
    "plain TRL": (False, {"gradient_checkpointing": False}),
    "hf_llm": (True, {}),
    "plain TRL, checkpointing": (False, {"gradient_checkpointing": True}),
    "hf_llm, checkpointing": (True, {"activation_checkpointing": True}),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=160)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_pairs(options: argparse.Namespace, folder: Path) -> None:
    """So many pairs of hh_rlhf as `--pairs` asks for, all of which fit the context."""
    from hf_llm.data.conversations import ConversationSource, load_preferences
    from hf_llm.model.loading import load_tokenizer
    from hf_llm.tokenization.rendering import encode_chat

    source = ConversationSource(license="mit", path=f"{os.environ['HF_LLM_DATA']}/hh_rlhf")
    rows, _, _ = load_preferences([source], 0.0, 1)
    tokenizer, written = load_tokenizer(folder / "ours"), 0
    with open(folder / "pairs.jsonl", "w", encoding="utf-8") as file:
        for row in rows:
            answers = [row["prompt"] + row[name] for name in ("chosen", "rejected")]
            longest = max(len(encode_chat(tokenizer, messages)[0]) for messages in answers)
            if longest <= options.context and written < options.pairs:
                file.write(json.dumps(row) + "\n")
                written += 1


def plain_trainer(folder: Path, arguments: dict) -> object:
    """What a short script writes."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    on_gpu = torch.cuda.is_available()
    return DPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder / "stock", dtype=torch.float32),
        args=DPOConfig(use_cpu=not on_gpu, bf16=on_gpu, **arguments),
        train_dataset=load_dataset("json", data_files=str(folder / "pairs.jsonl"), split="train"),
        processing_class=AutoTokenizer.from_pretrained(folder / "stock"),
    )


def our_trainer(folder: Path, arguments: dict) -> object:
    """What hf_llm.dpo makes of its section."""
    from trl import DPOConfig

    from hf_llm.data.conversations import ConversationSource, load_preferences
    from hf_llm.dpo import PreferenceTuning
    from hf_llm.lifecycle import Making
    from hf_llm.training.preferences import PairTrainer, fitting
    from hf_llm.training.tuning import chat_tokenizer, tuning_trainer

    source = ConversationSource(license="mit", path=str(folder / "pairs.jsonl"))
    section = PreferenceTuning(data=[source], evaluation_share=0.01, training={**arguments, "eval_strategy": "no"})
    *rows, _ = load_preferences(section.data, section.evaluation_share, 42)
    tokenizer = chat_tokenizer(folder / "ours", folder)
    rows, _ = fitting(rows, ("chosen", "rejected"), tokenizer, arguments["max_length"], section)
    making = Making(Path(arguments["output_dir"]), "dpo", {}, {})
    start = str(folder / "ours")
    return tuning_trainer(PairTrainer, DPOConfig, section, making, 42, start, rows, precompute_ref_log_probs=True)


def one_round(options: argparse.Namespace) -> None:
    """Train in this process and print tokens per second and peak memory as JSON."""
    import torch
    import trl.trainer.dpo_trainer  # noqa: F401  imported before the clock starts, for both

    import hf_llm.dpo  # noqa: F401

    ours, own = WAYS[options.way]
    arguments = {
        "output_dir": tempfile.mkdtemp(dir=options.inputs),
        "max_length": options.context,
        "per_device_train_batch_size": options.batch,
        "num_train_epochs": 1,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        **own,
    }
    started = time.perf_counter()
    trainer = (our_trainer if ours else plain_trainer)(options.inputs, arguments)
    trainer.train()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = (
        torch.cuda.max_memory_allocated()
        if torch.cuda.is_available()
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    )
    print(json.dumps({"tokens_per_second": trainer._total_train_tokens / seconds, "gib": peak / 2**30}))


def main() -> None:
    options = parse()
    if options.way:
        return one_round(options)
    found = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        prepare(options, Path(folder))
        write_pairs(options, Path(folder))
        for number in range(options.rounds):
            order = list(WAYS) if number % 2 == 0 else list(WAYS)[::-1]
            for way in order:
                command = [sys.executable, *sys.argv, "--way", way, "--inputs", folder]
                # A data set's cache would hand a later round what an earlier one has made.
                environment = {**os.environ, "HF_DATASETS_CACHE": tempfile.mkdtemp(dir=folder)}
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
                found[way].append(json.loads(done.stdout.splitlines()[-1]))
                speed, memory = found[way][-1].values()
                print(f"round {number + 1}  {way:<26} {speed:>10,.0f} tokens/s {memory:>6.2f} GiB", flush=True)
    report(found, options.rounds)


if __name__ == "__main__":
    main()

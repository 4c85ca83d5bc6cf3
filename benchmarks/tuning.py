"""SFT tokens per second and peak memory of our stage's trainer against a plain TRL script with transformers' Qwen3.

    HF_LLM_DATA=... python benchmarks/tuning.py         # medians of interleaved rounds, one process each
    HF_LLM_DATA=... python benchmarks/tuning.py --rounds 5 --vocab-size 16384

Same sizes, same rows of Alpaca with the same chat template, same batch and optimizer, float32 on a CPU and bf16 on a
GPU. `plain TRL` is SFTTrainer as its documentation writes it, with `assistant_only_loss`; its defaults recompute
activations in the backward pass (gradient checkpointing), ours do not, so each is shown both ways. `TRL's head` is our
stage with every position scored, to show the share of training/chat_trainer.py. Tokens are those of the rows, padding
not counted.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

WAYS = {  # name -> whether it is ours, and training arguments
    "plain TRL": (False, {"gradient_checkpointing": False}),
    "hf_llm": (True, {}),
    "hf_llm, TRL's head": (True, {}),
    "plain TRL, checkpointing": (False, {"gradient_checkpointing": True}),
    "hf_llm, checkpointing": (True, {"activation_checkpointing": True}),
    "plain TRL, packing": (False, {"gradient_checkpointing": False, "packing": True, "per_device_train_batch_size": 4}),
    "hf_llm, packing": (True, {"packing": True, "per_device_train_batch_size": 4}),
}
UNTIMED = 2  # steps


def parser(description: str, ways: Iterable[str], batch: int) -> argparse.ArgumentParser:
    """What the benchmarks of stages that tune a model are asked alike."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch", type=int, default=batch)
    parser.add_argument("--hidden-size", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--way", choices=ways, help=argparse.SUPPRESS)
    parser.add_argument("--inputs", type=Path, help=argparse.SUPPRESS)
    return parser


def prepare(options: argparse.Namespace, folder: Path) -> None:
    """A tokenizer trained on the rows, new models of both kinds with it, and the rows."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from hf_llm.data.chat.loaders import ConversationSource, load_conversations
    from hf_llm.model.configuration_hf_llm import HfLlmConfig
    from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM
    from hf_llm.tokenization.train import TokenizerSection, train_tokenizer

    source = ConversationSource(license="cc-by-nc-4.0", path=f"{os.environ['HF_LLM_DATA']}/alpaca/alpaca_5k.json")
    rows, _, _ = load_conversations([source], 0.0, 1)
    texts = [message["content"] for row in rows for message in row["messages"]]
    tokenizer = train_tokenizer(texts, TokenizerSection(vocab_size=options.vocab_size))
    sizes = {
        "vocab_size": options.vocab_size,
        "hidden_size": options.hidden_size,
        "intermediate_size": options.hidden_size * 11 // 4,
        "num_hidden_layers": options.layers,
        "num_attention_heads": options.hidden_size // 64,
        "num_key_value_heads": options.hidden_size // 64,
        "head_dim": 64,
        "max_position_embeddings": options.context,
        "tie_word_embeddings": True,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(0)
    for name, model in (
        ("ours", HfLlmForCausalLM(HfLlmConfig(**sizes))),
        ("stock", Qwen3ForCausalLM(Qwen3Config(**sizes))),
    ):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    with open(folder / "rows.jsonl", "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps({"messages": row["messages"]}) + "\n")


def plain_trainer(folder: Path, arguments: dict) -> object:
    """What a short script writes."""
    import torch
    from datasets import load_dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    on_gpu = torch.cuda.is_available()
    return SFTTrainer(
        AutoModelForCausalLM.from_pretrained(folder / "stock", dtype=torch.float32),
        SFTConfig(assistant_only_loss=True, use_cpu=not on_gpu, bf16=on_gpu, **arguments),
        train_dataset=load_dataset("json", data_files=str(folder / "rows.jsonl"), split="train"),
        processing_class=AutoTokenizer.from_pretrained(folder / "stock"),
    )


def our_trainer(folder: Path, arguments: dict, all_positions: bool) -> object:
    """What hf_llm.sft makes of its section."""
    from trl import SFTConfig, SFTTrainer

    from hf_llm.data.chat.loaders import ConversationSource
    from hf_llm.pipeline.run import StageOutput
    from hf_llm.posttraining.build_trainer import build_trainer
    from hf_llm.posttraining.rows.sft_dataset import build_sft_rows
    from hf_llm.posttraining.sft_trainer import SupervisedSFTTrainer
    from hf_llm.posttraining.starting_model import load_chat_tokenizer
    from hf_llm.sft import SftSection

    source = ConversationSource(license="cc-by-nc-4.0", path=str(folder / "rows.jsonl"))
    section = SftSection(data=[source], evaluation_share=0.01, training={**arguments, "eval_strategy": "no"})
    tokenizer = load_chat_tokenizer(folder / "ours", folder)
    rows = build_sft_rows(section, 42, tokenizer, arguments["max_length"])
    output = StageOutput(Path(arguments["output_dir"]), "sft", {}, {}, sources={"base": folder / "ours"})
    trainer_class = SFTTrainer if all_positions else SupervisedSFTTrainer
    return build_trainer(trainer_class, SFTConfig, section, output, 42, [rows.train, rows.held_out])


def one_round(options: argparse.Namespace) -> None:
    """Train in this process and print tokens per second and peak memory as JSON."""
    import torch
    from transformers import TrainerCallback

    ours, own = WAYS[options.way]
    output = tempfile.mkdtemp(dir=options.inputs)
    arguments = {
        "output_dir": output,
        "max_length": options.context,
        "per_device_train_batch_size": options.batch,
        "max_steps": options.steps + UNTIMED,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "dataset_num_proc": None,
        **own,
    }
    if ours:
        trainer = our_trainer(options.inputs, arguments, all_positions="head" in options.way)
    else:
        trainer = plain_trainer(options.inputs, arguments)
    ends = []

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            ends.append((time.perf_counter(), trainer._total_train_tokens))

    trainer.add_callback(Clock())
    trainer.train()
    (started, before), (ended, after) = ends[UNTIMED - 1], ends[-1]
    print(json.dumps({"tokens_per_second": (after - before) / (ended - started), "gib": peak_gib()}))


def peak_gib() -> float:
    """The most memory this process has held: the GPU's where there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    asked = parser(__doc__, WAYS, batch=16)
    asked.add_argument("--steps", type=int, default=15, help="timed steps of a round, after two untimed ones")
    options = asked.parse_args()
    if options.way:
        return one_round(options)
    with tempfile.TemporaryDirectory() as folder:
        prepare(options, Path(folder))
        run_rounds(options.rounds, WAYS, folder)


def run_rounds(rounds: int, ways: Iterable[str], folder: str) -> None:
    """Run this benchmark once for every way and round, each in a process of its own, forth and back; print medians."""
    found = {way: [] for way in ways}
    for number in range(rounds):
        for way in list(found) if number % 2 == 0 else list(found)[::-1]:
            command = [sys.executable, *sys.argv, "--way", way, "--inputs", folder]
            # A data set's cache would hand a later round what an earlier one has made.
            environment = {**os.environ, "HF_DATASETS_CACHE": tempfile.mkdtemp(dir=folder)}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
            speed, memory = found[way][-1].values()
            print(f"round {number + 1}  {way:<26} {speed:>10,.0f} tokens/s {memory:>6.2f} GiB", flush=True)
    report(found, rounds)


def report(found: dict[str, list[dict]], rounds: int) -> None:
    """The medians; each of ours as a ratio to the plain way above it, round by round."""
    print(f"\n{'':<26} {'tokens/s':>10} {'ratio':>6} {'peak GiB':>9}   medians of {rounds} rounds")
    plain = None
    for way, entries in found.items():
        speeds = [entry["tokens_per_second"] for entry in entries]
        plain = speeds if way.startswith("plain") else plain
        ratio = statistics.median(ours / theirs for ours, theirs in zip(speeds, plain, strict=True))
        memory = statistics.median(entry["gib"] for entry in entries)
        print(f"{way:<26} {statistics.median(speeds):>10,.0f} {ratio:>6.2f} {memory:>9.2f}")


if __name__ == "__main__":
    main()

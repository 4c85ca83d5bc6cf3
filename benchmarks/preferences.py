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
import tempfile
import time
from pathlib import Path

from tuning import parser, peak_gib, prepare, run_rounds

WAYS = {  # name -> whether it is ours, and training arguments
    "plain TRL": (False, {"gradient_checkpointing": False}),
    "hf_llm": (True, {}),
    "plain TRL, checkpointing": (False, {"gradient_checkpointing": True}),
    "hf_llm, checkpointing": (True, {"activation_checkpointing": True}),
}


def write_pairs(options: argparse.Namespace, folder: Path) -> None:
    """So many pairs of hh_rlhf as `--pairs` asks for, all of which fit the context."""
    from hf_llm.data.chat.loaders import ConversationSource, load_preferences
    from hf_llm.model.load import load_tokenizer
    from hf_llm.tokenization.chat_encoding import encode_chat

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

    from hf_llm.data.chat.loaders import ConversationSource, load_preferences
    from hf_llm.dpo import DpoSection
    from hf_llm.pipeline.run import StageOutput
    from hf_llm.posttraining.build_trainer import build_trainer
    from hf_llm.posttraining.dpo_trainer import LoggedDPOTrainer
    from hf_llm.posttraining.rows.overlong_rows import fit_rows
    from hf_llm.posttraining.starting_model import load_chat_tokenizer

    source = ConversationSource(license="mit", path=str(folder / "pairs.jsonl"))
    section = DpoSection(data=[source], evaluation_share=0.01, training={**arguments, "eval_strategy": "no"})
    *rows, _ = load_preferences(section.data, section.evaluation_share, 42)
    tokenizer = load_chat_tokenizer(folder / "ours", folder)
    rows, _ = fit_rows(rows, ("chosen", "rejected"), tokenizer, arguments["max_length"], section, "dpo")
    output = StageOutput(Path(arguments["output_dir"]), "dpo", {}, {}, sources={"sft": folder / "ours"})
    return build_trainer(LoggedDPOTrainer, DPOConfig, section, output, 42, rows, precompute_ref_log_probs=True)


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
    print(json.dumps({"tokens_per_second": trainer._total_train_tokens / seconds, "gib": peak_gib()}))


def main() -> None:
    asked = parser(__doc__, WAYS, batch=8)
    asked.add_argument("--pairs", type=int, default=160)
    options = asked.parse_args()
    if options.way:
        return one_round(options)
    with tempfile.TemporaryDirectory() as folder:
        prepare(options, Path(folder))
        write_pairs(options, Path(folder))
        run_rounds(options.rounds, WAYS, folder)


if __name__ == "__main__":
    main()

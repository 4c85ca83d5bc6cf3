"""A run folder as the stages leave it: a base model really trained for a second, an SFT model, an evaluation."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from hf_llm.core.jsonl import alerts_file, append_row
from hf_llm.core.manifest import write_json, write_manifest
from hf_llm.monitoring.attach import attach_callbacks

PARAMETERS = 64 * 16 * 2 + 2 * (4 * 16 * 16 + 3 * 16 * 32 + 2 * 16) + 16


class Windows(Dataset):
    """Numbers that count upwards: something to learn."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = torch.arange(index, index + 16) % 64
        return {"input_ids": row, "labels": row}


def train_model(folder: Path, steps: int) -> dict[str, float]:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    args = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        max_steps=steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=2,
        save_strategy="no",
        eval_strategy="steps",
        eval_steps=10,
    )
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, max_position_embeddings=32, **sizes))
    trainer = Trainer(model=model, args=args, train_dataset=Windows(), eval_dataset=Windows())
    attach_callbacks(trainer, flops_per_token=6 * PARAMETERS, bytes_per_token=3.5)
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    return trainer.evaluate()


def make_scores(loss: float) -> dict[str, float]:
    return {"loss": loss, "perplexity": math.exp(loss), "bits_per_byte": loss / math.log(2) / 3.5, "tokens": 4096}


@pytest.fixture(scope="session")
def run(tmp_path_factory):
    """`root`, the run's folder; `tree`, its recipe; `manifests` of its folders. DPO is requested and not done."""
    root = tmp_path_factory.mktemp("runs") / "tiny"
    sources = [
        {"installed": ["language_reference"], "license": "psf-2.0"},
        {"hub": "HuggingFaceFW/fineweb-edu", "subset": "sample-10BT", "license": "odc-by"},
        {"path": "/home/someone/private/letters", "license": "unknown"},
    ]
    tree = {
        "name": "tiny",
        "seed": 42,
        "corpus": {"sources": sources},
        "pretrain": {"tokens_per_step": 64, "training": {"learning_rate": 0.01}},
        "sft": {"data": [{"path": "chats.jsonl", "license": "cc-by-4.0"}], "training": {"max_steps": 6}},
        "dpo": {"data": [{"hub": "Anthropic/hh-rlhf", "license": "mit"}]},
    }
    manifests = {}

    def finish_folder(
        folder: str, headline: str, licenses: list[str], settings: dict, before: list[str], **facts
    ) -> None:
        (root / folder).mkdir(parents=True, exist_ok=True)
        (root / folder / "marker").write_text(folder)
        inputs = {name: manifests[name]["digest"] for name in before}
        entries = {"folder": folder, "headline": headline, "seconds": 61.25, "licenses": licenses, "settings": settings}
        manifests[folder] = write_manifest(root / folder, **entries, inputs=inputs, facts=facts)

    rules = {
        "read": {"documents": 1090, "bytes": 900_000, "seconds": 1.5, "dropped": {"not_utf8": 2}, "changed": {}},
        "pii": {"documents": 1090, "bytes": 900_000, "seconds": 0.5, "dropped": {}, "changed": {"redacted_email": 3}},
        "exact_duplicates": {
            "documents": 82, "bytes": 800_000, "seconds": 0.0, "dropped": {"duplicate": 1008}, "changed": {},
        },
    }  # fmt: skip
    sample = {"id": "0f" * 16, "url": "https://example.org/<1>", "source": "language reference", "kept": "1e" * 16}
    sample |= {"reason": "duplicate", "because": "", "text": "A <b>copy</b>"}
    kept = {"psf-2.0": {"documents": 82, "bytes": 800_000}}
    unreadable, lengths = {"not_utf8": ["a.txt, line 3: not UTF-8"]}, [0] * 9 + [80, 2]
    there = {"records": 1104, "used": 1090, "left_out": {"hidden": 9, "kind that is not read: .png": 3}}
    there |= {"unreadable": {"not_utf8": 2}, "examples": {"hidden": [".git/<config>"]}}
    source = {"license": "psf-2.0", "input": there, "rules": rules, "unreadable": unreadable, "lengths": lengths}
    ledger = {
        "sources": {"language reference": source},
        "splits": {"train": {"documents": 70, "bytes": 700_000}, "test": {"documents": 12, "bytes": 100_000}},
        "licenses": kept,
        "languages": {"en": kept["psf-2.0"]},
        "samples": {"exact_duplicates": [sample]},
        "cut_characters": 1234,
        "seconds": {"cleaning": 2.0, "sharding": 0.1},
    }
    texts = ["odc-by", "psf-2.0", "unknown"]
    finish_folder("corpus", "82 documents, 0.8 MB", texts, {"corpus.sources": sources}, [], ledger=ledger)
    finish_folder("tokenizer", "64 tokens, 1.00 bytes per token", texts, {}, ["corpus"])
    finish_folder("tokens", "1,024 tokens", texts, {}, ["corpus", "tokenizer"])
    metrics = train_model(root / "base", 30)
    rows = [
        {"step": 10, "prompt": "The <b>list</b>", "text": " is & is"},
        {"step": 20, "prompt": "The <b>list</b>", "text": ""},
    ]
    (root / "base" / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    alert = {"step": 12, "kind": "loss_spike", "text": "loss spike: <b>9.1</b>, usual is 4.2", "time": 1.0}
    append_row(alerts_file(root / "base"), alert)
    settings = {"pretrain.tokens_per_step": 64, "pretrain.training.learning_rate": 0.01, "seed": 42}
    finish_folder("base", "2.100 bits per byte", texts, settings, ["tokens", "tokenizer"], metrics=metrics, steps=30)
    metrics = train_model(root / "sft", 6)
    settings = {"sft.data": tree["sft"]["data"], "sft.training.max_steps": 6}
    finish_folder("sft", "loss 3.2 on held-out answers", [*texts, "cc-by-4.0"], settings, ["base"], metrics=metrics)
    models = {"base": make_scores(4.2), "sft": make_scores(4.3)}
    answers = {"base": "<script>alert('base')</script>", "sft": "A list is mutable."}
    (root / "evaluation").mkdir()
    write_json(
        root / "evaluation" / "results.json",
        {"models": models, "samples": [{"prompt": "What is a list?", "answers": answers}]},
    )
    finish_folder("evaluation", "base 1.7 bits per byte", texts, {}, ["tokens", "base", "sft"], results=models)
    return SimpleNamespace(root=root, tree=tree, manifests=manifests)

"""Tiny models under evaluation, and a benchmark run as the evaluation runs it."""

from pathlib import Path
from typing import Any

import torch

from hf_llm.evaluation.benchmark import Benchmark, Score
from hf_llm.evaluation.evaluated_model import EvaluatedModel
from hf_llm.evaluation.journal import Journal
from hf_llm.inference.generate import set_stop_tokens
from tests.tiny_models import tiny_model, tiny_tokenizer

CONTEXT = 256


def save_model(folder: Path, texts: list[str] | None = None, steps: int = 60, **changes: Any) -> EvaluatedModel:
    """A tiny model over bytes in a folder; with `texts` it is trained for some seconds on nothing but them."""
    tokenizer = tiny_tokenizer()
    sizes = {"max_position_embeddings": CONTEXT, "initializer_range": 0.02 if texts else 0.2, **changes}
    model = tiny_model(**sizes)
    if texts:
        train_on_texts(model, tokenizer, texts, steps)
    set_stop_tokens(model, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return EvaluatedModel(folder.name, folder)


def train_on_texts(model: torch.nn.Module, tokenizer: Any, texts: list[str], steps: int) -> None:
    """Train on whole texts, each after an end of text and with one behind it."""
    end = tokenizer.eos_token
    batch = tokenizer([f"{end}{text}{end}" for text in texts], padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimizer.step()
    model.eval()


def run(benchmark: Benchmark, model: EvaluatedModel, folder: Path, world_size: int = 1) -> list[dict[str, Any]]:
    """Score all documents in `world_size` processes, one after the other; return the rows of the journal."""
    journals = [Journal(folder, rank, world_size) for rank in range(world_size)]
    for journal in journals:
        benchmark.score_documents(model, journal)
    return Journal(folder).read()


def by_metric(scores: list[Score]) -> dict[str, Score]:
    assert len({score.metric for score in scores}) == len(scores)
    assert [score.is_primary for score in scores] == [True] + [False] * (len(scores) - 1)
    return {score.metric: score for score in scores}

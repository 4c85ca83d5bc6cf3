"""Evaluate the models of a run on its held-out test text, and let them answer the same prompts; makes
runs/<name>/evaluation.

    python -m hf_llm.evaluate recipes/gpt125m.yaml
    python -m hf_llm.evaluate recipes/gpt125m.yaml '--evaluate.models=[runs/gpt125m/base, runs/other/base]'

Writes results.json: loss, perplexity and bits per byte of each model, and its answers.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_llm.data.windows import TokenWindows
from hf_llm.errors import UserError, command
from hf_llm.evaluation.likelihood import score
from hf_llm.inference.generation import complete, reply
from hf_llm.lifecycle import GENERATORS, Run, licenses_of, say
from hf_llm.manifest import read_manifest, write_json
from hf_llm.model.loading import load_model, load_tokenizer
from hf_llm.recipe import load_recipe

PROMPTS = ["What does the function sorted do?", "What is a generator?", "Explain what an exception is."]
TOKENS_PER_BATCH = 8192


@dataclass
class Evaluation:
    """The `evaluate` section."""

    tokens: int = field(default=1 << 18, metadata={"help": "tokens of the test split to predict"})
    prompts: list[str] = field(default_factory=lambda: list(PROMPTS), metadata={"help": "each model answers these"})
    max_new_tokens: int = field(default=64, metadata={"help": "longest answer"})
    models: list[str] | None = field(
        default=None, metadata={"help": "folders or Hub ids, instead of this run's models"}
    )


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    evaluate: Evaluation = field(default_factory=Evaluation)


@command
def main(argv: list[str] | None = None) -> None:
    recipe, run = load_recipe(Recipe, argv), Run(argv)
    section = recipe.evaluate
    tokens = run.require("tokens")
    models = models_of(run, section)
    with run.begin("evaluation", recipe, tokens=tokens, **models) as making:
        if making.finished:
            return
        results = {"models": {}, "samples": [{"prompt": prompt, "answers": {}} for prompt in section.prompts]}
        for name, path in models.items():
            say(f"evaluating {path}")
            model, tokenizer = load(path, run.require("tokenizer"))
            results["models"][name] = {"path": str(path), **score_on(model, tokens, section.tokens)}
            for sample, text in zip(results["samples"], answers(model, tokenizer, path, section), strict=True):
                sample["answers"][name] = text
        write_json(making.path / "results.json", results)
        say(table(results["models"]))
        bits = ", ".join(f"{name} {scores['bits_per_byte']:.3f}" for name, scores in results["models"].items())
        making.finish(f"{bits} bits per byte", licenses_of(*models.values()), results=results["models"])


def models_of(run: Run, section: Evaluation) -> dict[str, Path | str]:
    """The models to evaluate, by short name: those the recipe lists, else every model this run makes."""
    if section.models is None:
        return {folder: run.require(folder) for folder in GENERATORS if run.has(folder)}
    names = [Path(model).name for model in section.models]
    if len(set(names)) < len(names):
        names = section.models
    return {name: run.given(model) for name, model in zip(names, section.models, strict=True)}


def load(path: Path | str, tokenizer_folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model on the best device here, and its tokenizer. Raises UserError where that is not the one of the tokens."""
    tokenizer = load_tokenizer(path)
    if tokenizer.get_vocab() != load_tokenizer(tokenizer_folder).get_vocab():
        raise UserError(
            f"evaluate.models: {path} has another tokenizer than {tokenizer_folder}, which encoded the test text; "
            "evaluate it in a run of its own tokenizer (bits per byte compare across runs)"
        )
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return load_model(path).to(device), tokenizer


def score_on(model: PreTrainedModel, tokens: Path, budget: int) -> dict[str, Any]:
    """`score` of `hf_llm.evaluation.likelihood` on at most `budget` tokens of the test split."""
    context = model.config.max_position_embeddings
    windows = TokenWindows(tokens, "test", context).limited(budget)
    return score(model, windows, batch_size=max(1, TOKENS_PER_BATCH // context))


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path | str, section: Evaluation
) -> list[str]:
    """Greedy answers to the prompts: a chat model is spoken to as a user, a base model goes on with the text."""
    if not section.prompts:
        return []
    if speaks(path, tokenizer):
        conversations = [[{"role": "user", "content": prompt}] for prompt in section.prompts]
        return reply(model, tokenizer, conversations, section.max_new_tokens, do_sample=False)
    return complete(model, tokenizer, section.prompts, section.max_new_tokens, do_sample=False)


def speaks(path: Path | str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a model has learnt to chat. Our base models carry a chat template too, so their manifest decides."""
    manifest = read_manifest(Path(path))
    return manifest["folder"] != "base" if manifest else tokenizer.chat_template is not None


def table(models: dict[str, dict[str, Any]]) -> str:
    """One line for each model."""
    width = max(len(name) for name in models)
    lines = [f"  {'model':<{width}}  bits per byte  perplexity    tokens"]
    for name, found in models.items():
        numbers = f"{found['bits_per_byte']:>13.4f}  {found['perplexity']:>10.2f}  {found['tokens']:>8,}"
        lines.append(f"  {name:<{width}}  {numbers}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

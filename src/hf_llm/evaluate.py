"""Evaluate the models of a run on its held-out test text, and let them answer the same prompts; makes
runs/<name>/evaluation.

    python -m hf_llm.evaluate recipes/gpt125m.yaml
    python -m hf_llm.evaluate recipes/gpt125m.yaml '--evaluate.models=[runs/gpt125m/base, runs/other/base]'

Writes results.json: loss, perplexity and bits per byte of each model, and its answers. Of a model that fills gaps the
share of masked tokens found and pseudo-perplexity, or the share of gaps written exactly (docs/objectives.md).
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError, command
from hf_llm.core.manifest import read_manifest, write_json
from hf_llm.data.tokens.token_dataset import TokenWindows
from hf_llm.evaluation.denoising import score_masked, score_spans
from hf_llm.evaluation.perplexity import score
from hf_llm.inference.generate import reply
from hf_llm.inference.infill import write
from hf_llm.model.load import CAUSAL, MASKED, context_with, load_model, load_tokenizer, objective_of
from hf_llm.pipeline.run import Run, licenses_of, read_run
from hf_llm.pipeline.stages import LANGUAGE_MODELS
from hf_llm.reporting.lineage import SCORES
from hf_llm.training.objectives import Objective, filled_in

PROMPTS = ["What does the function sorted do?", "What is a generator?", "Explain what an exception is."]
TOKENS_PER_BATCH = 8192
COLUMNS = {**SCORES, "loss": ("loss", ".4f"), "tokens": ("tokens", ",d")}  # of the table: key -> title, format


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
    run, recipe = read_run(Recipe, argv)
    section = recipe.evaluate
    models = models_of(run, section)
    with run.open_stage("evaluation", recipe, {"tokens": None, **models}) as making:
        if making.is_complete:
            return
        tokens = making.sources["tokens"]
        results = {"models": {}, "samples": [{"prompt": prompt, "answers": {}} for prompt in section.prompts]}
        for name, path in models.items():
            print_main(f"evaluating {path}")
            model, tokenizer = load(path, run.ensure_stage("tokenizer"))
            learnt = learnt_by(model, path)
            results["models"][name] = {
                "path": str(path),
                "objective": learnt.kind,
                **score_on(model, tokenizer, tokens, section.tokens, learnt),
            }
            for sample, text in zip(results["samples"], answers(model, tokenizer, path, section), strict=True):
                sample["answers"][name] = text
        write_json(making.path / "results.json", results)
        print_main(table(results["models"]))
        making.complete(headline(results["models"]), licenses_of(*models.values()), results=results["models"])


def models_of(run: Run, section: Evaluation) -> dict[str, Path | str]:
    """The models to evaluate, by short name: those the recipe lists, else every model this run makes."""
    if section.models is None:
        return {folder: run.ensure_stage(folder) for folder in LANGUAGE_MODELS if run.is_requested(folder)}
    names = [Path(model).name for model in section.models]
    if len(set(names)) < len(names):
        names = section.models
    return {name: run.resolve_source(model) for name, model in zip(names, section.models, strict=True)}


def load(path: Path | str, tokenizer_folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model on the best device here, and its tokenizer. Raises UserError where that is not the one of the tokens."""
    tokenizer = load_tokenizer(path)
    if tokenizer.get_vocab() != load_tokenizer(tokenizer_folder).get_vocab():
        raise UserError(
            f"evaluate.models: {path} has another tokenizer than {tokenizer_folder}, which encoded the test text; "
            "evaluate it in a run of its own tokenizer (bits per byte compare across runs)"
        )
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return load_model(path, objective=None).to(device), tokenizer


def learnt_by(model: PreTrainedModel, path: Path | str) -> Objective:
    """What a model has learnt: of ours with the settings of its training, of another with the papers'."""
    told = (read_manifest(Path(path)) or {}).get("facts", {}).get("objective")
    return Objective(**told) if told else filled_in(Objective(), objective_of(model.config), model.config.model_type)


def score_on(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Path, budget: int, learnt: Objective
) -> dict[str, Any]:
    """How well the model does what it has learnt on at most `budget` tokens of the test split."""
    context = context_with(model.config, tokenizer)
    windows = TokenWindows(tokens, "test", context).limited(budget)
    batch_size = max(1, TOKENS_PER_BATCH // context)
    if learnt.kind == CAUSAL:
        return score(model, windows, batch_size)
    corruption = learnt.corruption(tokenizer, context)
    if learnt.kind == MASKED:
        return score_masked(model, windows, corruption, batch_size)
    return score_spans(model, tokenizer, windows, corruption, batch_size)


def answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path | str, section: Evaluation
) -> list[str]:
    """Greedy answers to the prompts: a chat model is spoken to as a user, a base model goes on with the text, one that
    fills gaps gives the prompt with its gaps filled."""
    if not section.prompts:
        return []
    if speaks(path, tokenizer):
        conversations = [[{"role": "user", "content": prompt}] for prompt in section.prompts]
        return reply(model, tokenizer, conversations, section.max_new_tokens, do_sample=False)
    return write(model, tokenizer, section.prompts, section.max_new_tokens)


def speaks(path: Path | str, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a model has learnt to chat. Our base models carry a chat template too, so their manifest decides."""
    manifest = read_manifest(Path(path))
    return manifest["folder"] != "base" if manifest else tokenizer.chat_template is not None


def headline(models: dict[str, dict[str, Any]]) -> str:
    """The one number that matters of each model."""
    bits = ", ".join(f"{name} {found['bits_per_byte']:.3f}" for name, found in models.items() if "perplexity" in found)
    said = [f"{bits} bits per byte"] * bool(bits)
    for key, words in (("masked_accuracy", "of the masked tokens right"), ("span_exact_match", "of the gaps exact")):
        said += [f"{name} {found[key]:.1%} {words}" for name, found in models.items() if key in found]
    return ", ".join(said)


def table(models: dict[str, dict[str, Any]]) -> str:
    """One line for each model, with the columns that any of them has."""
    width = max(len(name) for name in [*models, "model"])
    columns = {key: column for key, column in COLUMNS.items() if any(key in found for found in models.values())}
    if "bits_per_byte" in columns:
        columns.pop("loss", None)  # the same number in nats
    lines = [f"  {'model':<{width}}" + "".join(f"  {title:>{max(10, len(title))}}" for title, _ in columns.values())]
    for name, found in models.items():
        line = f"  {name:<{width}}"
        for key, (title, form) in columns.items():
            line += f"  {format(found[key], form) if key in found else '':>{max(10, len(title))}}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()

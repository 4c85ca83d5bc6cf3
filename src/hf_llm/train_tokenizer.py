"""Train the tokenizer of a run on its corpus; makes runs/<name>/tokenizer.

    python -m hf_llm.train_tokenizer recipes/quickstart.yaml
    python -m hf_llm.train_tokenizer recipes/quickstart.yaml --tokenizer.vocab_size=4096

Read the result with `transformers.AutoTokenizer.from_pretrained("runs/<name>/tokenizer")`.
"""

from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from hf_llm.data.corpus import corpus_texts
from hf_llm.errors import command
from hf_llm.lifecycle import Run, licenses_of, say
from hf_llm.recipe import load_recipe
from hf_llm.tokenization.checks import check_tokenizer
from hf_llm.tokenization.report import tokenizer_report
from hf_llm.tokenization.training import TokenizerSection, train_tokenizer, use_tokenizer

HELD_OUT_BYTES = 10_000_000


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)


@command
def main(argv: list[str] | None = None) -> None:
    recipe, run = load_recipe(Recipe, argv), Run(argv)
    corpus = run.require("corpus")
    with run.begin("tokenizer", recipe, corpus=corpus) as making:
        if making.finished:
            return
        tokenizer = make_tokenizer(recipe.tokenizer, corpus)
        if context := context_of(run.tree):
            tokenizer.model_max_length = context
        report = tokenizer_report(tokenizer, corpus_texts(corpus, "validation"), HELD_OUT_BYTES)
        for title, samples in report["samples"].items():
            for text, tokens in samples.items():
                say(f"{title}: {text!r} is {' '.join(map(repr, tokens))}")
        tokenizer.save_pretrained(making.path)
        headline = f"{len(tokenizer):,} tokens, {report['bytes_per_token']:.2f} bytes per token"
        making.finish(headline, licenses=licenses_of(corpus), report=report)


def make_tokenizer(section: TokenizerSection, corpus: Path) -> PreTrainedTokenizerFast:
    """A new tokenizer, or the existing one that the recipe names; fit for a chat model either way."""
    tokenizer = use_tokenizer(section) if section.use else train_tokenizer(corpus_texts(corpus, "train"), section)
    check_tokenizer(tokenizer)
    return tokenizer


def context_of(tree: dict) -> int | None:
    """The tokens of context that the recipe gives its model, as far as it says."""
    pretrain, model = tree.get("pretrain") or {}, tree.get("model") or {}
    return pretrain.get("context") or model.get("max_position_embeddings")


if __name__ == "__main__":
    main()

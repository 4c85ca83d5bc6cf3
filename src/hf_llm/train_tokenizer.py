"""Train the tokenizer of a run on its corpus; makes runs/<name>/tokenizer.

    python -m hf_llm.train_tokenizer recipes/quickstart.yaml
    python -m hf_llm.train_tokenizer recipes/quickstart.yaml --tokenizer.vocab_size=4096

Read the result with `transformers.AutoTokenizer.from_pretrained("runs/<name>/tokenizer")`.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError, command
from hf_llm.data.corpus.build import Corpus, corpus_files
from hf_llm.data.corpus.reader_step import Read
from hf_llm.data.corpus.sources import Source, parts_of
from hf_llm.data.tokens.mixing import check_shares, sample_texts, train_sources
from hf_llm.data.tokens.token_shards import read_documents
from hf_llm.pipeline.run import licenses_of, read_run
from hf_llm.tokenization.checks import check_tokenizer
from hf_llm.tokenization.import_tokenizer import load_tokenizer, use_tokenizer
from hf_llm.tokenization.report import Batch, report_table, tokenizer_report
from hf_llm.tokenization.train import TokenizerSection, train_tokenizer
from hf_llm.training.objectives import objective_in

HELD_OUT_BYTES = 10_000_000
OWN_CHARS = 100_000  # of a text of `tokenizer.data`; longer files are cut
GPT2 = "openai-community/gpt2"


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    corpus: Corpus
    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    with run.open_stage("tokenizer", recipe, {"corpus": None}) as making:
        if making.is_complete:
            return
        corpus = making.sources["corpus"]
        others = compared(recipe.tokenizer.compare)
        context = context_of(run.tree)
        gaps = objective_in(run.tree).tokens(context)
        tokenizer = make_tokenizer(recipe.tokenizer, corpus, recipe.corpus.shares, gaps)
        if context:
            tokenizer.model_max_length = context
        report = tokenizer_report(tokenizer, held_out(corpus), HELD_OUT_BYTES, others)
        check_exact(report, recipe.tokenizer)
        for title, samples in report["samples"].items():
            for text, tokens in samples.items():
                print_main(f"{title}: {text!r} is {' '.join(map(repr, tokens))}")
        print_main(report_table(report))
        tokenizer.save_pretrained(making.path)
        headline = f"{len(tokenizer):,} tokens, {report['bytes_per_token']:.2f} bytes per token"
        making.complete(headline, licenses=licenses_of(corpus), report=report)


def make_tokenizer(
    section: TokenizerSection, corpus: Path, shares: dict[str, float] | None, gaps: list[str]
) -> PreTrainedTokenizerFast:
    """A new tokenizer, or the existing one that the recipe names; fit for a chat model either way, and with the tokens
    of `gaps` for a model that fills them."""
    if section.use:
        tokenizer = use_tokenizer(section, gaps)
    elif section.data:
        tokenizer = train_tokenizer(own_texts(section.data), section, gaps)
    else:
        files = corpus_files(corpus, "train")
        if shares:
            check_shares(shares, train_sources(files))
        tokenizer = train_tokenizer(sample_texts(files, shares, section.sample_bytes), section, gaps)
    check_tokenizer(tokenizer)
    return tokenizer


def own_texts(paths: list[str]) -> Iterator[str]:
    """The texts of files that the recipe names for the tokenizer alone, read as a source of the corpus is."""
    parts = parts_of([Source(path=path, license="unknown") for path in paths])
    for rank, part in enumerate(parts):
        reading = Read(parts, OWN_CHARS)
        yield from (document.text for document in reading.run(rank=rank, world_size=len(parts)))
        reading.faults.check(part.label)


def held_out(corpus: Path) -> Iterator[Batch]:
    """The validation split, in batches."""
    for path in corpus_files(corpus, "validation"):
        for documents in read_documents(path):
            yield documents.texts, documents.sources, documents.languages


def compared(names: list[str] | None) -> dict[str, PreTrainedTokenizerFast]:
    """The tokenizers to report beside the run's own. GPT-2's needs no asking, but is not fetched for this."""
    if names is not None:
        last = Counter(Path(name).name for name in names)
        titles = [Path(name).name if last[Path(name).name] == 1 else name for name in names]
        return {
            title: load_tokenizer(name, None, "tokenizer.compare") for title, name in zip(titles, names, strict=True)
        }
    try:
        return {"gpt2": load_tokenizer(GPT2, None, "tokenizer.compare", local_files_only=True)}
    except UserError:
        return {}


def check_exact(report: dict, section: TokenizerSection) -> None:
    """Say how often an existing tokenizer changes a text. One that was trained here never does."""
    own = report["tokenizers"][0]
    assert section.use or not own["differ"], own["example"]
    if own["differ"]:
        print_main(
            f"{section.use} changes {own['differ']:,} of {own['documents']:,} held-out texts ({own['example']}); "
            "a model trained with it cannot write what it loses"
        )


def context_of(tree: dict) -> int | None:
    """The tokens of context that the recipe gives its model, as far as it says."""
    pretrain, model = tree.get("pretrain") or {}, tree.get("model") or {}
    return pretrain.get("context") or model.get("max_position_embeddings")


if __name__ == "__main__":
    main()

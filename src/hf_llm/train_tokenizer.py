"""Train the tokenizer of a run on its corpus; makes runs/<name>/tokenizer.

    python -m hf_llm.train_tokenizer recipes/quickstart.yaml
    python -m hf_llm.train_tokenizer recipes/quickstart.yaml --tokenizer.vocab_size=4096

Read the result with `transformers.AutoTokenizer.from_pretrained("runs/<name>/tokenizer")`.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError, command
from hf_llm.core.extras import require_extras
from hf_llm.core.format import format_megabytes
from hf_llm.data.corpus.config import Corpus, Source
from hf_llm.data.corpus.corpus_files import list_corpus_files
from hf_llm.data.files.read_errors import describe_counts
from hf_llm.data.tokens.mixing import check_shares, list_train_sources, sample_evenly, sample_texts
from hf_llm.data.tokens.token_shards import read_documents
from hf_llm.pipeline.run import licenses_of, read_run
from hf_llm.preflight.before_work import check_before_work
from hf_llm.tokenization.report import Batch, format_report, measure_tokenizer
from hf_llm.tokenization.train import TokenizerSection, train_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


MAX_REPORT_BYTES = 10_000_000  # the report reads so much of the validation split
MAX_TEXT_CHARS = 100_000  # longer texts of `tokenizer.data` are cut
MIN_TEXT_CHARS = 1_000
PIECES_PER_SAMPLE = 200  # at least so many pieces of `tokenizer.data` make a sample, where it is smaller than the data
GPT2 = "openai-community/gpt2"


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    """The run's name: everything goes to runs/<name>/."""
    corpus: Corpus
    """The corpus, whose train split the tokenizer is trained on."""
    tokenizer: TokenizerSection = field(default_factory=TokenizerSection)
    """How the tokenizer is trained, or which existing one is used."""


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    check_before_work(run, "tokenizer")

    from hf_llm.training.objectives import resolve_objective

    with run.open_stage("tokenizer", recipe, {"corpus": None}) as output:
        if output.is_complete:
            return

        corpus = output.sources["corpus"]
        compared = load_compared_tokenizers(recipe.tokenizer.compare)
        context = read_context(run.tree)
        denoising_tokens = resolve_objective(run.tree).tokens(context)

        tokenizer = build_tokenizer(recipe.tokenizer, corpus, recipe.corpus.shares, denoising_tokens)
        if context:
            tokenizer.model_max_length = context

        report = measure_tokenizer(tokenizer, read_validation_split(corpus), MAX_REPORT_BYTES, compared)
        check_round_trip(report, recipe.tokenizer)
        print_report(report)

        tokenizer.save_pretrained(output.path)
        headline = f"{len(tokenizer):,} tokens, {report['bytes_per_token']:.2f} bytes per token"
        output.complete(headline, licenses=licenses_of(corpus), report=report)


def load_compared_tokenizers(names: list[str] | None) -> "dict[str, PreTrainedTokenizerFast]":
    """Load the tokenizers that the report compares with the run's own, by title.

    Without `names` that is GPT-2's, if the local Hub cache has it; it is not downloaded for this.
    """
    from hf_llm.tokenization.import_tokenizer import load_tokenizer

    if names is None:
        try:
            return {"gpt2": load_tokenizer(GPT2, None, "tokenizer.compare", local_files_only=True)}
        except UserError:
            return {}

    # A tokenizer is titled by the last part of its name, unless two share that.
    last_parts = Counter(Path(name).name for name in names)
    tokenizers = {}
    for name in names:
        last_part = Path(name).name
        title = last_part if last_parts[last_part] == 1 else name
        tokenizers[title] = load_tokenizer(name, None, "tokenizer.compare")
    return tokenizers


def read_context(tree: dict) -> int | None:
    """Return the context in tokens that the recipe gives its model; None where it does not say."""
    pretrain = tree.get("pretrain") or {}
    model = tree.get("model") or {}
    return pretrain.get("context") or model.get("max_position_embeddings")


def build_tokenizer(
    section: TokenizerSection, corpus: Path, shares: dict[str, float] | None, denoising_tokens: list[str]
) -> "PreTrainedTokenizerFast":
    """Train a new tokenizer, or load the existing one that the recipe names.

    Either is fit for a chat model, and has the `denoising_tokens` (mask or sentinels) that the model needs.
    """
    from hf_llm.tokenization.checks import check_tokenizer
    from hf_llm.tokenization.import_tokenizer import import_tokenizer

    if section.use:
        tokenizer = import_tokenizer(section, denoising_tokens)
    else:
        texts = read_training_texts(section, corpus, shares)
        tokenizer = train_tokenizer(texts, section, denoising_tokens)
    check_tokenizer(tokenizer)
    return tokenizer


def read_training_texts(section: TokenizerSection, corpus: Path, shares: dict[str, float] | None) -> Iterable[str]:
    """Return the texts to train on: the recipe's own for the tokenizer, or a sample of the train split by `shares`."""
    if section.data:
        return sample_own_texts(section.data, section.sample_bytes)

    files = list_corpus_files(corpus, "train")
    if shares:
        check_shares(shares, list_train_sources(files))
    return sample_texts(files, shares, section.sample_bytes)


def sample_own_texts(paths: list[str], sample_bytes: int) -> list[str]:
    """Return about `sample_bytes` of the files that the recipe names for the tokenizer, from all places of all files.

    All of them are read, and cut into pieces that are small beside the sample.
    """
    piece_chars = min(MAX_TEXT_CHARS, max(MIN_TEXT_CHARS, sample_bytes // PIECES_PER_SAMPLE))
    sample, total_bytes = sample_evenly(read_own_texts(paths, piece_chars), sample_bytes)
    sampled_bytes = sum(len(text.encode("utf-8")) for text in sample)
    if sampled_bytes < total_bytes:
        print_main(
            f"tokenizer.data: trained on {format_megabytes(sampled_bytes)} of {format_megabytes(total_bytes)}, drawn "
            "evenly from all files (tokenizer.sample_bytes)"
        )
    return sample


def read_own_texts(paths: list[str], piece_chars: int) -> Iterator[str]:
    """Yield the texts of files that the recipe names for the tokenizer alone, read as a source of the corpus is, in
    pieces of at most `piece_chars` characters."""
    require_extras("corpus")
    from hf_llm.data.corpus.reader_step import SourceReader
    from hf_llm.data.corpus.sources import list_read_tasks
    from hf_llm.data.files.text_files import split_text

    parts = list_read_tasks([Source(path=path, license="unknown") for path in paths])
    left_out = Counter()
    for rank, part in enumerate(parts):
        step = SourceReader(parts, MAX_TEXT_CHARS)
        for document in step.run(rank=rank, world_size=len(parts)):
            yield from split_text(document.text, piece_chars)
        step.faults.check_dropped_share(part.label)
        left_out.update(part.listing.left_out + part.listing.dropped + step.faults.left_out)
    if left_out:
        print_main(f"tokenizer.data: {left_out.total():,} left out: {describe_counts(left_out)}")


def read_validation_split(corpus: Path) -> Iterator[Batch]:
    """Yield the validation split of the corpus, in batches."""
    for path in list_corpus_files(corpus, "validation"):
        for documents in read_documents(path):
            yield documents.texts, documents.sources, documents.languages


def check_round_trip(report: dict, section: TokenizerSection) -> None:
    """Print how often an existing tokenizer changes a text. One that was trained here never does."""
    figures = report["tokenizers"][0]
    assert section.use or not figures["differ"], figures["example"]
    if figures["differ"]:
        print_main(
            f"{section.use} changes {figures['differ']:,} of {figures['documents']:,} held-out texts "
            f"({figures['example']}); a model trained with it cannot write what it loses"
        )


def print_report(report: dict) -> None:
    """Print how some typical text is cut, and the table of the tokenizers."""
    for title, samples in report["samples"].items():
        for text, tokens in samples.items():
            print_main(f"{title}: {text!r} is {' '.join(map(repr, tokens))}")
    print_main(format_report(report))


if __name__ == "__main__":
    main()

"""Turn the corpus of a run into token shards for training; makes runs/<name>/tokens.

    python -m hf_llm.tokenize_corpus recipes/quickstart.yaml

The same command resumes after the last complete shard of an interrupted run, and ends with the same bytes.
`hf_llm.data.tokens.token_dataset.TokenWindows` reads the result.
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError, command
from hf_llm.core.manifest import BEGUN_FILE, MANIFEST_FILE, file_digest, read_manifest, write_json
from hf_llm.core.progress import open_progress_bar
from hf_llm.data.corpus.config import Corpus
from hf_llm.data.corpus.corpus_files import list_corpus_files
from hf_llm.data.corpus.splits import SPLIT_NAMES
from hf_llm.data.tokens.mixing import (
    MixRow,
    StreamRouter,
    check_shares,
    format_mix,
    list_train_sources,
    measure_stage_bounds,
    plan_mix,
    plan_stage_streams,
    plan_stages,
    plan_streams,
)
from hf_llm.data.tokens.token_shards import (
    Documents,
    Tokens,
    read_documents,
    smallest_id_dtype,
    tokenize_documents,
    write_shards,
)
from hf_llm.pipeline.run import StageOutput, licenses_of, read_run
from hf_llm.pipeline.tokens_folder import INDEX, TOKENIZER_COPY, TOKENIZER_FILE, read_index
from hf_llm.preflight.before_work import check_before_work
from hf_llm.tokenization.text_boundaries import count_ids, document_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    """The run's name: everything goes to runs/<name>/."""
    corpus: Corpus
    """The corpus, with the mix and the curriculum of its train split."""


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    check_before_work(run, "tokens")
    with run.open_stage("tokens", recipe, {"corpus": None, "tokenizer": None}) as output:
        if output.is_complete:
            return

        corpus = output.sources["corpus"]
        check_local_tokenizer(output.sources["tokenizer"])
        tokenizer = load_parallel_tokenizer(output.sources["tokenizer"])
        ledger = read_manifest(corpus)["facts"]["ledger"]

        copy_tokenizer(output.sources["tokenizer"], output.path / TOKENIZER_COPY)
        index = load_index(output, tokenizer)
        router = build_router(recipe.corpus, list_corpus_files(corpus, "train"), tokenizer, list(ledger["sources"]))
        tokenize_splits(corpus, ledger, output.path, index, tokenizer, router, recipe.corpus.max_tokens)

        mix = []
        if router is not None:
            mix = plan_training(index, recipe.corpus)
        write_json(output.path / INDEX, index)
        if mix:
            print_main(format_mix(mix, recipe.corpus.max_epochs))
        complete_stage(output, index, licenses_of(corpus), mix)


def check_local_tokenizer(tokenizer: Path | str) -> None:
    """Raise UserError for a Hub id in `pretrain.tokenizer`: a tokenizer from there is imported first."""
    if not (Path(tokenizer) / TOKENIZER_FILE).is_file():
        raise UserError(
            f"pretrain.tokenizer: {tokenizer} is not a folder with {TOKENIZER_FILE}; for a tokenizer of the Hub write "
            f"tokenizer: {{use: {tokenizer}}} instead"
        )


def load_parallel_tokenizer(folder: Path) -> "PreTrainedTokenizerBase":
    """Load the run's tokenizer, which encodes in several threads."""
    from transformers import AutoTokenizer

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    return AutoTokenizer.from_pretrained(folder)


def copy_tokenizer(tokenizer: Path, folder: Path) -> None:
    """Copy the tokenizer's files to `folder`, so that whoever is given the shards can read their ids."""
    folder.mkdir(exist_ok=True)
    for file in sorted(tokenizer.iterdir()):
        if file.is_file() and file.name not in (MANIFEST_FILE, BEGUN_FILE):
            shutil.copyfile(file, folder / file.name)


def load_index(output: StageOutput, tokenizer: "PreTrainedTokenizerBase") -> dict:
    """Load the index of the shards that an interrupted run has finished, or begin an empty one."""
    if (output.path / INDEX).exists():
        return read_index(output.path)
    return {
        "dtype": smallest_id_dtype(count_ids(tokenizer)).name,
        "vocab_size": count_ids(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "prefix": document_prefix(tokenizer),
        "tokenizer": file_digest(output.sources["tokenizer"] / TOKENIZER_FILE),
        "files": {},  # number of the corpus files that are done, by split
        "splits": {},
    }


def build_router(
    section: Corpus, files: list[Path], tokenizer: "PreTrainedTokenizerBase", recipe_order: list[str]
) -> StreamRouter | None:
    """Build what divides the train split into streams; None where the recipe asks for no mix and no curriculum.

    Sources stand in the order of the shares, otherwise in the recipe's. Raises UserError where the shares do not name
    the sources of the train split.
    """
    curriculum = section.curriculum
    if curriculum and curriculum.by == "mix":
        return _build_mix_router(section, files)

    sources = None
    if section.shares:
        check_shares(section.shares, list_train_sources(files))
        sources = list(section.shares)
    elif curriculum and curriculum.by == "source":
        in_corpus = list_train_sources(files)
        sources = [name for name in recipe_order if name in in_corpus]
        sources += [name for name in in_corpus if name not in recipe_order]

    if curriculum and curriculum.by != "source":
        documents = chain.from_iterable(read_documents(path) for path in files)
        bounds, costs = measure_stage_bounds(curriculum, encode_documents(documents, tokenizer), count_ids(tokenizer))
        return StreamRouter(sources, curriculum, bounds, costs)
    if sources:
        return StreamRouter(sources, curriculum)
    return None


def _build_mix_router(section: Corpus, files: list[Path]) -> StreamRouter:
    """Build the router of a curriculum by mix, whose stages together name every source."""
    all_shares = {}
    for number, stage in enumerate(section.curriculum.stages):
        check_shares(stage.shares, stage.shares, f"corpus.curriculum.stages[{number}].shares")
        all_shares |= stage.shares
    check_shares(all_shares, list_train_sources(files), "corpus.curriculum.stages' shares, taken together,")
    return StreamRouter(list(all_shares))


def tokenize_splits(
    corpus: Path,
    ledger: dict,
    folder: Path,
    index: dict,
    tokenizer: "PreTrainedTokenizerBase",
    router: StreamRouter | None,
    max_tokens: int | None,
) -> None:
    """Make the shards of every split, with a progress bar; `max_tokens` bounds a train split that is not a mix."""
    limit = max_tokens if router is None else None
    size = sum(counts["bytes"] for counts in ledger["splits"].values())
    with open_progress_bar(total=size, desc="tokenising", unit="B", unit_scale=True) as bar:
        for split in SPLIT_NAMES:
            files = list_corpus_files(corpus, split)
            if split == "train":
                tokenize_split(files, split, folder, index, tokenizer, bar, router, limit)
            else:
                tokenize_split(files, split, folder, index, tokenizer, bar)


def tokenize_split(
    files: list[Path],
    split: str,
    folder: Path,
    index: dict,
    tokenizer: "PreTrainedTokenizerBase",
    bar: tqdm,
    router: StreamRouter | None = None,
    limit: int | None = None,
) -> None:
    """Make shards of every corpus file of a split that the index does not have yet, and enter them there."""
    if not files:
        return

    shards = index["splits"].setdefault(split, [])
    bar.update(sum(shard["bytes"] for shard in shards))
    files_done = index["files"].setdefault(split, 0)
    for number in range(files_done, len(files)):
        remaining = None
        if limit:
            remaining = limit - sum(shard["tokens"] for shard in shards)
            if remaining <= 0:
                return

        batches = encode_documents(read_documents(files[number]), tokenizer)
        size_before = 0
        for entries in write_shards(folder, f"{split}-{number:05d}", batches, router, remaining):
            size = sum(entry["bytes"] for entry in entries)
            bar.update(size - size_before)
            size_before = size

        # The index names a shard after its file is complete: an interrupted run resumes from the index.
        shards += entries
        index["files"][split] = number + 1
        write_json(folder / INDEX, index)


def encode_documents(
    documents: Iterable[Documents], tokenizer: "PreTrainedTokenizerBase"
) -> Iterator[tuple[Documents, Tokens]]:
    """Yield documents with their tokens, as shards hold them."""
    dtype = np.dtype(smallest_id_dtype(count_ids(tokenizer)))
    prefix = document_prefix(tokenizer)
    return tokenize_documents(documents, tokenizer.backend_tokenizer, tokenizer.eos_token_id, dtype, prefix)


def plan_training(index: dict, section: Corpus) -> list[MixRow]:
    """Plan how many tokens training takes of each stream, and enter it in the index. Returns the rows of the mix."""
    shards = index["splits"]["train"]
    available = count_tokens_by("sources", shards)
    curriculum = section.curriculum
    if curriculum and curriculum.by == "mix":
        mix = plan_stages(available, curriculum.stages, section.max_epochs, section.max_tokens)
        index["plan"] = plan_stage_streams(mix)
        return mix

    order = list(section.shares or available)
    available = {name: available[name] for name in order}
    mix = plan_mix(available, section.shares, section.max_epochs, section.max_tokens)
    index["plan"] = plan_streams(shards, mix)
    return mix


def complete_stage(output: StageOutput, index: dict, licenses: list[str], mix: list[MixRow]) -> None:
    """Write the manifest: tokens, documents and bytes of the splits, tokens by source and language, and the mix."""
    totals = {}
    tokens_by_source = {}
    tokens_by_language = {}
    for split, shards in index["splits"].items():
        totals[split] = sum_counts(shards)
        tokens_by_source[split] = count_tokens_by("sources", shards)
        tokens_by_language[split] = count_tokens_by("languages", shards)

    tokens_by_split = ", ".join(f"{split} {counts['tokens']:,}" for split, counts in totals.items())
    output.complete(
        f"{tokens_by_split} tokens",
        licenses=licenses,
        splits=totals,
        dtype=index["dtype"],
        tokens_by_source=tokens_by_source,
        tokens_by_language=tokens_by_language,
        mix=mix,
        streams=index.get("plan", []),
    )


def sum_counts(shards: list[dict]) -> dict[str, int | float]:
    """Return tokens, documents and bytes of a split, and bytes per token."""
    totals = {}
    for unit in ("tokens", "documents", "bytes"):
        totals[unit] = sum(shard[unit] for shard in shards)
    totals["bytes_per_token"] = totals["bytes"] / max(totals["tokens"], 1)
    return totals


def count_tokens_by(group: str, shards: list[dict]) -> dict[str, int]:
    """Return the tokens of a split by the `sources` or `languages` of its documents, the most first."""
    total = Counter()
    for shard in shards:
        total.update(shard[group])
    return dict(sorted(total.items(), key=lambda pair: (-pair[1], pair[0])))


if __name__ == "__main__":
    main()

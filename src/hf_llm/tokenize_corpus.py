"""Turn the corpus of a run into token shards for training; makes runs/<name>/tokens.

    python -m hf_llm.tokenize_corpus recipes/quickstart.yaml

The same command goes on after the last whole shard of an interrupted run, and ends with the same bytes.
`hf_llm.data.tokens.token_dataset.TokenWindows` reads the result.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_llm.core.console import print_main
from hf_llm.core.errors import command
from hf_llm.core.manifest import file_digest, read_manifest, write_json
from hf_llm.data.corpus.build import Corpus, corpus_files
from hf_llm.data.corpus.splits import NAMES
from hf_llm.data.tokens.mixing import (
    Streams,
    check_shares,
    mix_table,
    plan_mix,
    plan_stages,
    plan_streams,
    stages_from,
    streams_in_stages,
    train_sources,
)
from hf_llm.data.tokens.token_shards import (
    INDEX,
    Documents,
    Tokens,
    dtype_for,
    read_documents,
    read_index,
    tokenized,
    write_shards,
)
from hf_llm.pipeline.run import licenses_of, read_run


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    corpus: Corpus


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    with run.open_stage("tokens", recipe, {"corpus": None, "tokenizer": None}) as making:
        if making.is_complete:
            return
        corpus, tokenizer_folder = making.sources["corpus"], making.sources["tokenizer"]
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        index = begun_index(making.path, tokenizer, file_digest(tokenizer_folder / "tokenizer.json"))
        section, files = recipe.corpus, {split: corpus_files(corpus, split) for split in NAMES}
        ledger = read_manifest(corpus)["facts"]["ledger"]
        streams = streams_of(section, files["train"], tokenizer, list(ledger["sources"]))
        limit = None if streams else section.max_tokens
        size = sum(counts["bytes"] for counts in ledger["splits"].values())
        with tqdm(total=size, desc="tokenising", unit="B", unit_scale=True) as bar:
            tokenize_split(files["train"], "train", making.path, index, tokenizer, bar, streams, limit)
            for split in NAMES[1:]:
                tokenize_split(files[split], split, making.path, index, tokenizer, bar)
        mix = plan(index, section) if streams else []
        write_json(making.path / INDEX, index)
        if mix:
            print_main(mix_table(mix, section.max_epochs))
        finish(making, index, licenses_of(corpus), mix)


def finish(making, index: dict, licenses: list[str], mix: list[dict]) -> None:
    """Write the manifest: tokens, documents and bytes of the splits, tokens by source and language, and the mix."""
    totals = {split: totals_of(shards) for split, shards in index["splits"].items()}
    headline = ", ".join(f"{split} {counts['tokens']:,}" for split, counts in totals.items()) + " tokens"
    making.complete(
        headline,
        licenses=licenses,
        splits=totals,
        dtype=index["dtype"],
        tokens_by_source={split: tokens_by("sources", shards) for split, shards in index["splits"].items()},
        tokens_by_language={split: tokens_by("languages", shards) for split, shards in index["splits"].items()},
        mix=mix,
        streams=index.get("plan", []),
    )


def begun_index(folder: Path, tokenizer: PreTrainedTokenizerBase, digest: str) -> dict:
    """The index of the shards that an earlier run has finished, or an empty one."""
    if (folder / INDEX).exists():
        return read_index(folder)
    return {
        "dtype": dtype_for(len(tokenizer)).name,
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "tokenizer": digest,
        "files": {},  # of the corpus, by split, that are done
        "splits": {},
    }


def streams_of(
    section: Corpus, files: list[Path], tokenizer: PreTrainedTokenizerBase, order: list[str]
) -> Streams | None:
    """How the train split is divided into streams; None where the recipe asks for no mix and no curriculum.

    Sources stand in the order of the shares, otherwise in the recipe's `order`.
    """
    curriculum, sources = section.curriculum, None
    if curriculum and curriculum.by == "mix":
        for number, stage in enumerate(curriculum.stages):
            check_shares(stage.shares, stage.shares, f"corpus.curriculum.stages[{number}].shares")
        everywhere = {name: share for stage in curriculum.stages for name, share in stage.shares.items()}
        check_shares(everywhere, train_sources(files), "corpus.curriculum.stages' shares, taken together,")
        return Streams(list(everywhere))
    if section.shares:
        check_shares(section.shares, train_sources(files))
        sources = list(section.shares)
    elif curriculum and curriculum.by == "source":
        sources = sorted(
            train_sources(files), key=lambda name: (order.index(name) if name in order else len(order), name)
        )
    if curriculum and curriculum.by != "source":
        sample = encoded(chain.from_iterable(map(read_documents, files)), tokenizer)
        return Streams(sources, curriculum, *stages_from(curriculum, sample, len(tokenizer)))
    return Streams(sources, curriculum) if sources else None


def plan(index: dict, section: Corpus) -> list[dict]:
    """Enter in the index how many tokens training takes of each stream. Returns the rows of the mix."""
    shards = index["splits"]["train"]
    there = tokens_by("sources", shards)
    if section.curriculum and section.curriculum.by == "mix":
        mix = plan_stages(there, section.curriculum.stages, section.max_epochs, section.max_tokens)
        index["plan"] = streams_in_stages(mix)
        return mix
    order = list(section.shares or there)
    mix = plan_mix({name: there[name] for name in order}, section.shares, section.max_epochs, section.max_tokens)
    index["plan"] = plan_streams(shards, mix)
    return mix


def tokenize_split(
    files: list[Path],
    split: str,
    folder: Path,
    index: dict,
    tokenizer: PreTrainedTokenizerBase,
    bar: tqdm,
    streams: Streams | None = None,
    limit: int | None = None,
) -> None:
    """Make shards of every corpus file of a split that the index does not have yet, and enter them there."""
    if not files:
        return
    shards = index["splits"].setdefault(split, [])
    bar.update(sum(shard["bytes"] for shard in shards))
    for number in range(index["files"].setdefault(split, 0), len(files)):
        left = limit - sum(shard["tokens"] for shard in shards) if limit else None
        if left is not None and left <= 0:
            return
        before, batches = 0, encoded(read_documents(files[number]), tokenizer)
        for entries in write_shards(folder, f"{split}-{number:05d}", batches, streams, left):
            size = sum(entry["bytes"] for entry in entries)
            bar.update(size - before)
            before = size
        shards += entries
        index["files"][split] = number + 1
        write_json(folder / INDEX, index)


def encoded(documents: Iterator[Documents], tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Documents, Tokens]]:
    """Documents with their tokens, by the rules of shards."""
    dtype = np.dtype(dtype_for(len(tokenizer)))
    return tokenized(documents, tokenizer.backend_tokenizer, tokenizer.eos_token_id, dtype)


def totals_of(shards: list[dict]) -> dict[str, int | float]:
    """Tokens, documents and bytes of a split, and bytes per token."""
    totals = {unit: sum(shard[unit] for shard in shards) for unit in ("tokens", "documents", "bytes")}
    return {**totals, "bytes_per_token": totals["bytes"] / max(totals["tokens"], 1)}


def tokens_by(what: str, shards: list[dict]) -> dict[str, int]:
    """Tokens of a split by the `sources` or `languages` of its documents, the most first."""
    total = Counter()
    for shard in shards:
        total.update(shard[what])
    return dict(sorted(total.items(), key=lambda pair: (-pair[1], pair[0])))


if __name__ == "__main__":
    main()

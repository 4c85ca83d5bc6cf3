"""Turn the corpus of a run into token shards for training; makes runs/<name>/tokens.

    python -m hf_llm.tokenize_corpus recipes/quickstart.yaml

The same command goes on after the last whole shard of an interrupted run, and ends with the same bytes.
`hf_llm.data.windows.TokenWindows` reads the result.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_llm.data.corpus import Corpus, corpus_files, file_texts
from hf_llm.data.shards import INDEX, dtype_for, read_index, write_shard
from hf_llm.data.splitting import NAMES
from hf_llm.errors import command
from hf_llm.lifecycle import Run, licenses_of
from hf_llm.manifest import file_digest, read_manifest, write_json
from hf_llm.recipe import load_recipe


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    corpus: Corpus


@command
def main(argv: list[str] | None = None) -> None:
    recipe, run = load_recipe(Recipe, argv), Run(argv)
    corpus, tokenizer_folder = run.require("corpus"), run.require("tokenizer")
    with run.begin("tokens", recipe, corpus=corpus, tokenizer=tokenizer_folder) as making:
        if making.finished:
            return
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
        index = begun_index(making.path, tokenizer, file_digest(tokenizer_folder / "tokenizer.json"))
        sizes = {name: counts["bytes"] for name, counts in read_manifest(corpus)["facts"]["ledger"]["splits"].items()}
        with tqdm(total=sum(sizes.values()), desc="tokenising", unit="B", unit_scale=True) as bar:
            for split in NAMES:
                limit = recipe.corpus.max_tokens if split == "train" else None
                tokenize_split(corpus_files(corpus, split), split, making.path, index, tokenizer, limit, bar)
        totals = {split: totals_of(shards) for split, shards in index["splits"].items()}
        headline = ", ".join(f"{split} {counts['tokens']:,}" for split, counts in totals.items()) + " tokens"
        making.finish(headline, licenses=licenses_of(corpus), splits=totals, dtype=index["dtype"])


def begun_index(folder: Path, tokenizer: PreTrainedTokenizerBase, digest: str) -> dict:
    """The index of the shards that an earlier run has finished, or an empty one."""
    if (folder / INDEX).exists():
        return read_index(folder)
    return {
        "dtype": dtype_for(len(tokenizer)).name,
        "vocab_size": len(tokenizer),
        "eos_token_id": tokenizer.eos_token_id,
        "tokenizer": digest,
        "splits": {},
    }


def tokenize_split(
    files: list[Path],
    split: str,
    folder: Path,
    index: dict,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    bar: tqdm,
) -> None:
    """Make one shard of every corpus file of a split that the index does not have yet, and enter it there."""
    done = index["splits"].setdefault(split, []) if files else []
    for shard in done:
        bar.update(shard["bytes"])
    for number, file in enumerate(files[len(done) :], len(done)):
        left = limit - sum(shard["tokens"] for shard in done) if limit else None
        if left is not None and left <= 0:
            return
        path, before = folder / f"{split}-{number:05d}.bin", 0
        dtype = dtype_for(index["vocab_size"])
        for counts in write_shard(
            path, file_texts(file), tokenizer.backend_tokenizer, index["eos_token_id"], dtype, left
        ):
            bar.update(counts["bytes"] - before)
            before = counts["bytes"]
        done.append(dict(counts))
        write_json(folder / INDEX, index)


def totals_of(shards: list[dict]) -> dict[str, int | float]:
    """Tokens, documents and bytes of a split, and bytes per token."""
    totals = {unit: sum(shard[unit] for shard in shards) for unit in ("tokens", "documents", "bytes")}
    return {**totals, "bytes_per_token": totals["bytes"] / max(totals["tokens"], 1)}


if __name__ == "__main__":
    main()

"""Plan the mix of the train tokens (`corpus.shares`) and the order in which they are shown (`corpus.curriculum`).

The tokens of each source are stored once, as one stream. A plan says how many tokens training takes from each stream,
and so how often the stream is repeated; `hf_llm.data.tokens.token_dataset.TokenWindows` reads them by that plan.

A curriculum divides training into stages. One by source, length or difficulty also divides the tokens: a stream then
holds one source in one stage. One by mix does not: its stages take different shares of the same streams, and each
continues in a stream where the stage before has stopped.

The difficulty of a document is the rarity of its tokens: the mean of -log2 p(token), p by the counts in the first
`SAMPLE_BYTES` of the corpus (word rarity of Platanios et al. 2019, "Competence-based Curriculum Learning", section 3,
per token, so that a long text is not difficult for being long). The same sample gives the bounds between the stages,
at equal numbers of tokens.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType
from typing import NotRequired, TypedDict

import numpy as np
import xxhash

from hf_llm.core.errors import UserError
from hf_llm.data.tokens.curriculum import Curriculum, MixStage
from hf_llm.data.tokens.token_shards import Documents, Tokens

SAMPLE_BYTES = 8 << 20
_COST_UNITS_PER_BIT = 1024  # costs are whole 1/1024 bits: sums of whole numbers are the same on every machine
_VISIBLE_SHARE = 0.0005  # a larger difference of two shares is visible in the printed table

_NONE_RESERVED: Mapping[str, int] = MappingProxyType({})


class MixRow(TypedDict):
    """How many tokens training takes of a source."""

    stage: NotRequired[int]  # of a curriculum by mix, from 1
    source: str
    tokens: int  # of the source in the train split
    asked: float  # the share that the recipe asks for
    share: float  # the share in the plan
    epochs: float  # how often the plan repeats it
    planned: int  # tokens to take of it, repetitions counted


class StreamPlan(TypedDict):
    """How many tokens training takes of a stream: an entry of `plan` in a tokens folder's index.json."""

    stage: int  # from 0
    source: str  # "" if one stream holds all sources
    tokens: int  # of the stream
    planned: int  # tokens to take of it, repetitions counted
    passed: NotRequired[int]  # of a curriculum by mix: tokens that the stages before take of the same stream


class StreamRouter:
    """Chooses the stream of each document: by its source, by its stage, or by both.

    `sources` get one stream each, in this order; if empty, all share one. `bounds` (stages - 1,) are the scores that
    separate the stages of a curriculum by length (in tokens) or by difficulty, `costs` (vocabulary,) what each
    token adds to the difficulty of a document. `labels` holds the `source` and `stage` of each stream, as the index of
    a tokens folder gives them for each file.
    """

    def __init__(
        self,
        sources: list[str] | None = None,
        curriculum: Curriculum | None = None,
        bounds: np.ndarray | None = None,
        costs: np.ndarray | None = None,
    ):
        self.sources = sources or []
        self.curriculum = curriculum
        self.bounds = bounds
        self.costs = costs
        self._source_numbers = {name: number for number, name in enumerate(self.sources)}
        self.labels = self._make_labels()

    def _make_labels(self) -> list[dict]:
        source_labels = [{"source": name} for name in self.sources] or [{}]
        if self.curriculum is None:
            return source_labels
        if self.curriculum.by == "source":
            return [{"stage": stage, **label} for stage, label in enumerate(source_labels)]
        assert self.bounds is not None, "the stages of a curriculum by length or difficulty have bounds"
        stages = range(len(self.bounds) + 1)
        return [{"stage": stage, **label} for stage in stages for label in source_labels]

    def route_documents(self, documents: Documents, tokens: Tokens) -> np.ndarray:
        """Return the stream of each document, (documents,): an index into `labels`."""
        source_numbers = np.zeros(len(tokens.lengths), np.int64)
        if self.sources:
            source_numbers = np.array([self._source_numbers[name] for name in documents.sources], np.int64)
        if self.curriculum is None or self.bounds is None:
            return source_numbers

        scores = score_documents(self.curriculum, tokens, self.costs)
        stages = np.searchsorted(self.bounds, scores, side="left")
        return stages * max(1, len(self.sources)) + source_numbers


def score_documents(curriculum: Curriculum, tokens: Tokens, costs: np.ndarray | None) -> np.ndarray:
    """Return the score by which a curriculum sorts documents, (documents,): their length, or their mean token cost."""
    if curriculum.by == "length":
        return tokens.lengths

    assert costs is not None, "difficulty is measured by the costs of tokens"
    first_tokens = np.cumsum(tokens.lengths) - tokens.lengths  # (documents,) the index of the first token of each
    total_costs = np.add.reduceat(costs[tokens.ids], first_tokens)
    return total_costs // tokens.lengths


def measure_stage_bounds(
    curriculum: Curriculum, sample: Iterable[tuple[Documents, Tokens]], vocab_size: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Measure in a sample the scores that separate the stages, (stages - 1,), and the cost of every token.

    Every stage holds the same number of the sample's tokens, up to the length of a document. The costs, (vocabulary,),
    are None for a curriculum by length.
    """
    assert isinstance(curriculum.stages, int), "stages by mix are not measured"
    batches = []
    size = 0
    for documents, tokens in sample:
        batches.append(tokens)
        size += int(documents.bytes.sum())
        if size >= SAMPLE_BYTES:
            break

    costs = None
    if curriculum.by == "difficulty":
        ids = np.concatenate([tokens.ids for tokens in batches])
        counts = np.bincount(ids, minlength=vocab_size) + 1  # so that a token not in the sample has a finite cost
        bits = -np.log2(counts / counts.sum())
        costs = np.rint(_COST_UNITS_PER_BIT * bits).astype(np.int64)

    scores = np.concatenate([score_documents(curriculum, tokens, costs) for tokens in batches])
    lengths = np.concatenate([tokens.lengths for tokens in batches])

    # Sort the documents by score, and cut where each stage has its part of the tokens.
    order = np.argsort(scores, kind="stable")
    tokens_so_far = np.cumsum(lengths[order])
    total = tokens_so_far[-1]
    cuts = [total * stage / curriculum.stages for stage in range(1, curriculum.stages)]
    last_documents = np.searchsorted(tokens_so_far, cuts)
    return scores[order][last_documents], costs


def check_shares(shares: dict[str, float], sources: Iterable[str], where: str = "corpus.shares") -> None:
    """Raise UserError unless `shares` are positive and name exactly the `sources` of the train split."""
    not_positive = [f"{name}: {share}" for name, share in shares.items() if not share > 0]
    if not_positive:
        raise UserError(f"{where}: {', '.join(not_positive)}; a share has to be positive")

    sources = sorted(sources)
    if sorted(shares) != sources:
        raise UserError(
            f"{where} and the sources of the train split differ:\n"
            f"  shares:  {', '.join(sorted(shares))}\n"
            f"  sources: {', '.join(sources)}\n"
            "  Give every source a share, or leave it out of corpus.sources; `name:` of a source says what it goes by."
        )


def plan_mix(
    available: dict[str, int],
    shares: dict[str, float] | None,
    max_epochs: float,
    max_tokens: int | None,
    reserved: Mapping[str, int] = _NONE_RESERVED,
) -> list[MixRow]:
    """Plan how many tokens to take from each source, given how many are `available`.

    The total is `max_tokens`, or all available tokens. No source is repeated more than `max_epochs` times, its tokens
    `reserved` for other stages included; what a source cannot give for its share is divided among the others in
    proportion to their shares. Without `shares`, every source has the share it has of the available tokens.
    """
    if not shares:
        shares = {name: float(tokens) for name, tokens in available.items()}
    caps = {}
    for name in shares:
        caps[name] = max(0, int(available[name] * max_epochs) - reserved.get(name, 0))

    # Divide the budget by the shares. A source whose part exceeds its cap gets the cap, and what remains of the budget
    # is divided among the others, until no cap is exceeded.
    budget = min(max_tokens or sum(available.values()), sum(caps.values()))
    planned = {}
    open_sources = list(shares)
    while open_sources:
        total_share = sum(shares[name] for name in open_sources)
        parts = {name: budget * shares[name] / total_share for name in open_sources}
        capped = [name for name in open_sources if parts[name] > caps[name]]
        if not capped:
            planned |= {name: round(parts[name]) for name in open_sources}
            break
        for name in capped:
            planned[name] = caps[name]
            budget -= caps[name]
        open_sources = [name for name in open_sources if name not in planned]

    total_planned = max(sum(planned.values()), 1)
    total_share = sum(shares.values())
    rows = []
    for name in shares:
        row = MixRow(
            source=name,
            tokens=available[name],
            asked=shares[name] / total_share,
            share=planned[name] / total_planned,
            epochs=planned[name] / max(available[name], 1),
            planned=planned[name],
        )
        rows.append(row)
    return rows


def plan_stages(
    available: dict[str, int], stages: list[MixStage], max_epochs: float, max_tokens: int | None
) -> list[MixRow]:
    """Plan each stage of a curriculum by mix: rows as of `plan_mix`, each with its `stage`, from 1.

    Later stages are planned first, so that a small source which several stages ask for is kept for the last of them.
    """
    total_tokens = max_tokens or sum(available.values())
    total_share = sum(stage.share for stage in stages)
    reserved = Counter()
    rows: list[MixRow] = []
    for number in range(len(stages), 0, -1):
        stage = stages[number - 1]
        budget = max(1, round(total_tokens * stage.share / total_share))
        mix = plan_mix(available, stage.shares, max_epochs, budget, reserved)
        for row in mix:
            reserved[row["source"]] += row["planned"]

        stage_rows: list[MixRow] = [{"stage": number, **row} for row in mix]
        rows = stage_rows + rows
    return rows


def plan_stage_streams(rows: list[MixRow]) -> list[StreamPlan]:
    """Turn the rows of `plan_stages` into plans of streams; all stages read the same stream of a source."""
    passed = Counter()
    plans = []
    for row in rows:
        assert "stage" in row
        source = row["source"]
        plan = StreamPlan(
            stage=row["stage"] - 1,
            source=source,
            tokens=row["tokens"],
            planned=row["planned"],
            passed=passed[source],
        )
        plans.append(plan)
        passed[source] += row["planned"]
    return plans


def plan_streams(shards: list[dict], mix: list[MixRow]) -> list[StreamPlan]:
    """Plan the streams that `shards` belong to, in the order of the stages.

    The streams of a source in all stages are repeated equally often, as `mix` says for the source.
    """
    tokens_by_stream = Counter()
    for shard in shards:
        stage = shard.get("stage", 0)
        source = shard.get("source", "")
        tokens_by_stream[stage, source] += shard["tokens"]

    source_numbers = {row["source"]: number for number, row in enumerate(mix)}

    def sort_key(stream: tuple[int, str]) -> tuple[int, int]:
        stage, source = stream
        return stage, source_numbers.get(source, 0)

    plans = []
    for stage, source in sorted(tokens_by_stream, key=sort_key):
        # A stream that holds all sources is repeated as often as they are on average.
        rows = mix
        if source:
            rows = [mix[source_numbers[source]]]
        planned = sum(row["planned"] for row in rows)
        available = sum(row["tokens"] for row in rows)

        tokens = tokens_by_stream[stage, source]
        plans.append(
            StreamPlan(
                stage=stage,
                source=source,
                tokens=tokens,
                planned=tokens * planned // max(available, 1),
            )
        )
    return plans


def format_mix(mix: list[MixRow], max_epochs: float) -> str:
    """Format the plan as a table to print, one for each stage if it has stages."""
    lines = []
    if "stage" in mix[0]:
        for number, rows in groupby(mix, key=itemgetter("stage")):
            lines.append(f"  stage {number}")
            lines += _table_lines(list(rows))
        return "\n".join(lines)

    lines += _table_lines(mix)
    differences = [abs(row["asked"] - row["share"]) for row in mix]
    if max(differences) > _VISIBLE_SHARE:
        limits = [int(row["tokens"] * max_epochs / row["asked"]) for row in mix]
        lines.append(
            f"  (the shares asked for are reachable up to corpus.max_tokens={min(limits)}, with max_epochs "
            f"{max_epochs:g})"
        )
    return "\n".join(lines)


def _table_lines(mix: list[MixRow]) -> list[str]:
    width = max(len("source"), *(len(row["source"]) for row in mix))
    lines = [f"  {'source':<{width}}  {'tokens':>15}  share asked  share got  epochs"]
    for row in mix:
        cells = [
            f"{row['source']:<{width}}",
            f"{row['tokens']:>15,}",
            f"{row['asked']:>11.1%}",
            f"{row['share']:>9.1%}",
            f"{row['epochs']:>6.2f}",
        ]
        lines.append("  " + "  ".join(cells))

    total = sum(row["planned"] for row in mix)
    lines.append(f"  in all {total:,} tokens to train on")
    return lines


def list_train_sources(files: Iterable[Path]) -> list[str]:
    """Return the names of the sources in Parquet files of a corpus, sorted."""
    import pyarrow.parquet

    sources = set()
    for path in files:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1 << 16, columns=["source"]):
                sources.update(batch["source"].unique().to_pylist())
    return sorted(sources)


def sample_texts(files: Iterable[Path], shares: dict[str, float] | None, limit: int) -> Iterator[str]:
    """Yield texts from Parquet files of a corpus, about `limit` bytes of them, divided among the sources by `shares`.

    Without shares these are the first texts; documents are sorted by digest, so they are a random sample. A source that
    has less text than its part gives all of it. Memory holds one row group; a row group without a source that is still
    needed is not read.
    """
    # Bytes still to take, by source; without shares, all under the key None.
    remaining: dict[str | None, float] = {None: limit}
    if shares:
        total_share = sum(shares.values())
        remaining = {name: limit * share / total_share for name, share in shares.items()}

    for path in files:
        for texts, sizes, sources in _read_wanted_groups(path, remaining):
            for text, size, source in zip(texts, sizes, sources, strict=True):
                key = source if shares else None
                if remaining[key] > 0:
                    remaining[key] -= size
                    yield text
        if max(remaining.values()) <= 0:
            return


def sample_evenly(texts: Iterable[str], limit: int) -> tuple[list[str], int]:
    """Draw texts, about `limit` bytes of them, from all places of a stream alike. Return them, and the stream's bytes.

    A text has the digest of its characters as its rank, and the lowest ranks are kept, so the same texts give the same
    sample in any order. Memory holds the sample.
    """
    kept: list[tuple[int, int, int, str]] = []  # a heap of (-rank, -number, bytes, text): the highest rank comes first
    kept_bytes = 0
    total_bytes = 0
    for number, text in enumerate(texts):
        size = len(text.encode("utf-8"))
        total_bytes += size
        heapq.heappush(kept, (-xxhash.xxh3_64_intdigest(text.encode("utf-8")), -number, size, text))
        kept_bytes += size
        while kept_bytes - kept[0][2] >= limit:
            kept_bytes -= heapq.heappop(kept)[2]
    return [text for *_, text in sorted(kept, reverse=True)], total_bytes


def _read_wanted_groups(
    path: Path, remaining: dict[str | None, float]
) -> Iterator[tuple[list[str], list[int], list[str]]]:
    """Yield the texts, their bytes and sources of each row group that holds a source with bytes `remaining` to take."""
    import pyarrow.compute as compute
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            column = file.read_row_group(group, columns=["source"])["source"]
            sources = column.unique().to_pylist()
            if not any(remaining.get(name, remaining.get(None, 0)) > 0 for name in sources):
                continue
            table = file.read_row_group(group, columns=["text", "source"])
            sizes = compute.binary_length(table["text"]).to_pylist()
            yield table["text"].to_pylist(), sizes, table["source"].to_pylist()

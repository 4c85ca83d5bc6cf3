"""The mix of the train tokens (`corpus.shares`) and the order in which they are shown (`corpus.curriculum`).

Each source's tokens are stored once, in a stream of their own. A plan says how many tokens training takes of each
stream, so how often it is repeated; `hf_llm.data.tokens.token_dataset.TokenWindows` serves them by that plan. A
curriculum cuts the
streams further, into stages that training passes one after the other; one by mix leaves them whole, and each of its
stages goes on in a stream where the stages before have stopped.

The difficulty of a document is the rarity of its tokens: the mean of -log2 p(token), p by the counts in the first
`SAMPLE_BYTES` of the corpus (word rarity of Platanios et al. 2019, "Competence-based Curriculum Learning", section 3,
per token, so that a long text is not difficult for being long). The same sample gives the bounds between the stages,
at equal numbers of tokens.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType

import numpy as np

from hf_llm.core.errors import UserError
from hf_llm.data.tokens.curriculum import Curriculum, MixStage
from hf_llm.data.tokens.token_shards import Documents, Tokens

SAMPLE_BYTES = 8 << 20
_UNIT = 1024  # costs are whole 1/1024 bits: sums of whole numbers are the same on every machine


class Streams:
    """Which stream a document goes to: that of its source, of its stage, or of both.

    `sources` are told apart in this order (none: they are not). `bounds` are the scores between the stages of a
    curriculum by length (tokens) or difficulty, `costs` (vocabulary,) what each token adds to the latter.
    """

    def __init__(
        self,
        sources: list[str] | None = None,
        curriculum: Curriculum | None = None,
        bounds: np.ndarray | None = None,
        costs: np.ndarray | None = None,
    ):
        self.sources = sources or []
        self.curriculum, self.bounds, self.costs = curriculum, bounds, costs
        self._places = {name: place for place, name in enumerate(self.sources)}
        names = [{"source": name} for name in self.sources] or [{}]
        if curriculum is None:
            self.labels = names
        elif curriculum.by == "source":
            self.labels = [{"stage": stage, **name} for stage, name in enumerate(names)]
        else:
            self.labels = [{"stage": stage, **name} for stage in range(len(bounds) + 1) for name in names]

    def of(self, documents: Documents, tokens: Tokens) -> np.ndarray:
        """The stream of each document, (documents,): a place in `labels`."""
        places = np.zeros(len(tokens.lengths), np.int64)
        if self.sources:
            places = np.array([self._places[name] for name in documents.sources], np.int64)
        if self.bounds is None:
            return places
        stages = np.searchsorted(self.bounds, scores(self.curriculum, tokens, self.costs), side="left")
        return stages * max(1, len(self.sources)) + places


def scores(curriculum: Curriculum, tokens: Tokens, costs: np.ndarray | None) -> np.ndarray:
    """What a curriculum by length or difficulty sorts documents by, (documents,)."""
    if curriculum.by == "length":
        return tokens.lengths
    starts = np.cumsum(tokens.lengths) - tokens.lengths
    return np.add.reduceat(costs[tokens.ids], starts) // tokens.lengths


def stages_from(
    curriculum: Curriculum, sample: Iterable[tuple[Documents, Tokens]], vocab_size: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """The bounds between the stages, (stages - 1,), and the tokens' costs (None for length), from a sample.

    Each stage holds as many tokens of the sample as any other, as far as documents allow.
    """
    parts, size = [], 0
    for documents, tokens in sample:
        parts.append(tokens)
        size += int(documents.bytes.sum())
        if size >= SAMPLE_BYTES:
            break
    costs = None
    if curriculum.by == "difficulty":
        counts = sum(np.bincount(part.ids, minlength=vocab_size) for part in parts) + 1
        costs = np.rint(_UNIT * -np.log2(counts / counts.sum())).astype(np.int64)
    found = np.concatenate([scores(curriculum, part, costs) for part in parts])
    lengths = np.concatenate([part.lengths for part in parts])
    order = np.argsort(found, kind="stable")
    passed = np.cumsum(lengths[order])
    cuts = [passed[-1] * stage / curriculum.stages for stage in range(1, curriculum.stages)]
    return found[order][np.searchsorted(passed, cuts)], costs


def check_shares(shares: dict[str, float], found: Iterable[str], where: str = "corpus.shares") -> None:
    """Raise UserError unless `shares` are positive and name exactly the sources `found` in the train split."""
    wrong = [f"{name}: {share}" for name, share in shares.items() if not share > 0]
    if wrong:
        raise UserError(f"{where}: {', '.join(wrong)}; a share has to be positive")
    found = sorted(found)
    if sorted(shares) != found:
        raise UserError(
            f"{where} and the sources of the train split differ:\n"
            f"  shares:  {', '.join(sorted(shares))}\n"
            f"  sources: {', '.join(found)}\n"
            "  Give every source a share, or leave it out of corpus.sources; `name:` of a source says what it goes by."
        )


def plan_mix(
    there: dict[str, int],
    shares: dict[str, float] | None,
    max_epochs: float,
    max_tokens: int | None,
    taken: Mapping[str, int] = MappingProxyType({}),
) -> list[dict]:
    """How many tokens to take of each source that has the tokens `there`, as rows of the table.

    In all `max_tokens`, or as many as there are. No source is taken more than `max_epochs` times, what is `taken` of it
    elsewhere counted in; what is missing for its share goes to the others in proportion to theirs. Without `shares`
    every source keeps the share it has.
    """
    shares = shares or {name: float(tokens) for name, tokens in there.items()}
    most = {name: max(0, int(there[name] * max_epochs) - taken.get(name, 0)) for name in shares}
    left = min(max_tokens or sum(there.values()), sum(most.values()))
    planned, rest = {}, list(shares)
    while rest:
        weight = sum(shares[name] for name in rest)
        wanted = {name: left * shares[name] / weight for name in rest}
        full = [name for name in rest if wanted[name] > most[name]]
        planned |= {name: most[name] for name in full} if full else {name: round(wanted[name]) for name in rest}
        left -= sum(most[name] for name in full)
        rest = [name for name in rest if name not in planned]
    total, weight = max(sum(planned.values()), 1), sum(shares.values())
    return [
        {
            "source": name,
            "tokens": there[name],
            "asked": shares[name] / weight,
            "share": planned[name] / total,
            "epochs": planned[name] / max(there[name], 1),
            "planned": planned[name],
        }
        for name in shares
    ]


def plan_stages(there: dict[str, int], stages: list[MixStage], max_epochs: float, max_tokens: int | None) -> list[dict]:
    """The rows of `plan_mix` for each stage of a curriculum by mix, each with its `stage`, from 1.

    What a stage takes of a source comes before what the stages before it would like: a small source that all of them
    share is kept for the last.
    """
    total, weight = max_tokens or sum(there.values()), sum(stage.share for stage in stages)
    taken, rows = Counter(), []
    for number, stage in reversed(list(enumerate(stages, 1))):
        budget = max(1, round(total * stage.share / weight))
        mix = plan_mix(there, stage.shares, max_epochs, budget, taken)
        taken.update({row["source"]: row["planned"] for row in mix})
        rows = [{"stage": number, **row} for row in mix] + rows
    return rows


def streams_in_stages(rows: list[dict]) -> list[dict]:
    """As `plan_streams`, of the rows of `plan_stages`: `passed` tokens of a stream are those of the stages before."""
    passed, found = Counter(), []
    for row in rows:
        name = row["source"]
        entry = {"stage": row["stage"] - 1, "source": name, "tokens": row["tokens"], "planned": row["planned"]}
        found.append({**entry, "passed": passed[name]})
        passed[name] += row["planned"]
    return found


def plan_streams(shards: list[dict], mix: list[dict]) -> list[dict]:
    """The tokens to take of each stream, in the order of the stages: `{"stage", "source", "tokens", "planned"}`.

    Every stage of a source is repeated as often as the source is.
    """
    rows = {row["source"]: row for row in mix}
    streams = {}
    for shard in shards:
        key = (shard.get("stage", 0), shard.get("source", ""))
        streams[key] = streams.get(key, 0) + shard["tokens"]
    places = {row["source"]: place for place, row in enumerate(mix)}
    found = []
    for stage, source in sorted(streams, key=lambda key: (key[0], places.get(key[1], 0))):
        there = streams[stage, source]
        # A stream of all sources takes from each what its row says, so together the share that the rows say.
        whole = [rows[source]] if source else mix
        share = sum(row["planned"] for row in whole), max(sum(row["tokens"] for row in whole), 1)
        found.append({"stage": stage, "source": source, "tokens": there, "planned": there * share[0] // share[1]})
    return found


def mix_table(mix: list[dict], max_epochs: float) -> str:
    """The plan as lines to print, by stages where it has some."""
    if "stage" in mix[0]:
        stages = groupby(mix, key=itemgetter("stage"))
        return "\n".join(line for number, rows in stages for line in (f"  stage {number}", *_table(list(rows))))
    lines = _table(mix)
    if any(abs(row["asked"] - row["share"]) > 0.0005 for row in mix):
        holds = min(int(row["tokens"] * max_epochs / row["asked"]) for row in mix)
        lines.append(f"  (the shares as asked hold up to corpus.max_tokens={holds}, with max_epochs {max_epochs:g})")
    return "\n".join(lines)


def _table(mix: list[dict]) -> list[str]:
    width = max(len("source"), *(len(row["source"]) for row in mix))
    lines = [f"  {'source':<{width}}  {'tokens':>15}  share asked  share got  epochs"]
    for row in mix:
        asked, got = f"{row['asked']:.1%}", f"{row['share']:.1%}"
        lines.append(f"  {row['source']:<{width}}  {row['tokens']:>15,}  {asked:>11}  {got:>9}  {row['epochs']:>6.2f}")
    return [*lines, f"  in all {sum(row['planned'] for row in mix):,} tokens to train on"]


def train_sources(files: Iterable[Path]) -> list[str]:
    """The names of the sources that Parquet files of a corpus hold, sorted."""
    import pyarrow.compute as compute
    import pyarrow.parquet

    found = set()
    for path in files:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1 << 16, columns=["source"]):
                found.update(compute.unique(batch["source"]).to_pylist())
    return sorted(found)


def sample_texts(files: Iterable[Path], shares: dict[str, float] | None, limit: int) -> Iterator[str]:
    """Texts of Parquet files of a corpus, at most about `limit` bytes of them, divided among the sources by `shares`.

    Without shares they are the first texts, which the order by digest makes a random sample of all. A source that holds
    less than its part gives all it has. Memory holds one row group, and those that have nothing to give are not read.
    """
    weight = sum(shares.values()) if shares else 1
    left = {name: limit * share / weight for name, share in shares.items()} if shares else {None: limit}
    for path in files:
        for texts, sizes, sources in _wanted(path, left):
            for text, size, source in zip(texts, sizes, sources, strict=True):
                key = source if shares else None
                if left[key] > 0:
                    left[key] -= size
                    yield text
        if max(left.values()) <= 0:
            return


def _wanted(path: Path, left: dict[str | None, float]) -> Iterator[tuple[list[str], list[int], list[str]]]:
    """Texts, their bytes and sources of the row groups in which a source stands that has something `left` to give."""
    import pyarrow.compute as compute
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            found = compute.unique(file.read_row_group(group, columns=["source"])["source"]).to_pylist()
            if any(left.get(name, left.get(None, 0)) > 0 for name in found):
                table = file.read_row_group(group, columns=["text", "source"])
                sizes = compute.binary_length(table["text"]).to_pylist()
                yield table["text"].to_pylist(), sizes, table["source"].to_pylist()

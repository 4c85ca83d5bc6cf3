"""Count what was there, what could not be read and what is not read by kind, by reason, with a few examples.

A record is what one document is made of: a row, a page, a record of a web archive, or a whole file where a file is one
text. Every record is in one of three counts: it became a document (or a part of one), it was left out because of its
kind, or it could not be read.
"""

from collections import Counter
from dataclasses import dataclass, field

from hf_llm.core.errors import UserError
from hf_llm.core.surrogates import replace_lone_surrogates

MAX_EXAMPLES_PER_REASON = 3  # examples that are kept for each reason
EXCERPT_CHARS = 80
NO_TEXT = "no text"  # the reason for an empty file, row or page: it was read, and there is nothing in it
UNEXPLAINED = "no reason given"  # of records that a reader neither used nor counted
MAX_UNREADABLE_SHARE = 0.10  # of a source's records, those that are left out by kind aside

# What helps against a read error. Others are damage: to repair the file or to leave it out.
_REMEDIES = {
    "not UTF-8": "Text has to be UTF-8 (`iconv -f latin1 -t utf8` converts).",
    "binary": "A file with zero bytes is not text; name its `format`, or leave it out.",
    "encrypted": "Unpack or decrypt it, and give the `path` of the result.",
    "encrypted PDF": "Decrypt it (`qpdf --decrypt`), and give the `path` of the result.",
    "PDF without text": "Scanned pages have to be recognised first (OCR), or left out.",
    "no LaTeX": "Papers without LaTeX cannot be read as `format: latex`; leave them out.",
    "no known form of a discussion": "docs/sources.md lists the forms; rows with a text column are `format: rows`.",
}
_DAMAGE_REMEDY = "Repair what is damaged, or leave it out."


def describe_counts(counts: dict[str, int], limit: int = 8) -> str:
    """Write counts by reason, the largest first: `12 hidden, 3 generated`; those beyond `limit` are summed."""
    ordered = Counter(counts).most_common()
    parts = [f"{count:,} {reason}" for reason, count in ordered[:limit]]
    rest = ordered[limit:]
    if rest:
        parts.append(f"{sum(count for _, count in rest):,} for {len(rest)} other reasons")
    return ", ".join(parts)


def describe_input(entry: dict) -> list[str]:
    """Describe in lines what was there of a source, by its entry of a ledger; none where an older run made that."""
    counts = entry.get("input")
    if counts is None:
        return []

    left_out = counts["left_out"]
    unreadable = counts["unreadable"]
    records = counts["records"]
    were_there = "1 file or record was there" if records == 1 else f"{records:,} files and records were there"
    line = f"{were_there}: {counts['used']:,} used"
    if left_out:
        line += f", {sum(left_out.values()):,} left out"
    if unreadable:
        line += f", {sum(unreadable.values()):,} unreadable"
    lines = [line]
    if left_out:
        lines.append(f"left out: {describe_counts(left_out)}")
    return lines


@dataclass
class ReadErrors:
    """Counts of the records in one part of the input: `records` = `used` + all of `left_out` + all of `dropped`."""

    records: int = 0
    """All that were there."""

    dropped: Counter = field(default_factory=Counter)
    """Those that could not be read, by reason."""

    examples: dict[str, list[str]] = field(default_factory=dict)
    """A few of those in `dropped`, by reason."""

    left_out: Counter = field(default_factory=Counter)
    """Those that are not read because of their kind, or that are empty, by reason. Nothing is wrong with them."""

    left_out_examples: dict[str, list[str]] = field(default_factory=dict)
    """A few of those in `left_out`, by reason."""

    used: int = 0
    """Those that became documents, or parts of one."""

    def drop_record(self, reason: str, where: str, excerpt: bytes | str = "") -> None:
        """Count a record at `where` (file and line) as dropped for `reason`. The caller has counted it in `records`."""
        self.dropped[reason] += 1
        if self.dropped[reason] > MAX_EXAMPLES_PER_REASON:
            return
        example = f"{where}: {reason}"
        if excerpt:
            example += f": {excerpt[:EXCERPT_CHARS]!r}"
        self.examples.setdefault(reason, []).append(replace_lone_surrogates(example))

    def leave_out(self, reason: str, where: str, count: int = 1) -> None:
        """Count a record at `where` as left out for `reason`. The caller has counted it in `records`."""
        self.left_out[reason] += count
        examples = self.left_out_examples.setdefault(reason, [])
        if len(examples) < MAX_EXAMPLES_PER_REASON:
            examples.append(replace_lone_surrogates(where))

    def add(self, other: "ReadErrors") -> None:
        """Add the counts and examples of another part."""
        self.records += other.records
        self.used += other.used
        self.dropped.update(other.dropped)
        self.left_out.update(other.left_out)
        for ours, theirs in (
            (self.examples, other.examples),
            (self.left_out_examples, other.left_out_examples),
        ):
            for reason, examples in theirs.items():
                all_examples = [*ours.get(reason, []), *examples]
                ours[reason] = all_examples[:MAX_EXAMPLES_PER_REASON]

    @property
    def samples(self) -> list[str]:
        """The examples of all read errors, one reason after the other."""
        return [example for examples in self.examples.values() for example in examples]

    @property
    def counted(self) -> int:
        """The sum of the three counts, which is `records` when a part has been read."""
        return self.used + self.left_out.total() + self.dropped.total()

    def check_dropped_share(self, name: str, hint: str = "") -> None:
        """Raise UserError if more than `MAX_UNREADABLE_SHARE` of the records of `name` could not be read.

        Records that are left out by kind do not count. `hint` is a further remedy.
        """
        unreadable = self.dropped.total()
        records = self.records - self.left_out.total()
        if unreadable > MAX_UNREADABLE_SHARE * max(records, 1):
            lines = [f"{name}: {unreadable:,} of {records:,} records are unreadable:", *self.samples]
            raise UserError("\n    ".join(lines) + f"\n  {' '.join(filter(None, [hint, self._describe_remedies()]))}")

    def _describe_remedies(self) -> str:
        """Say what helps against the read errors, the most frequent first; each remedy once."""
        by_frequency = [reason for reason, _ in self.dropped.most_common()]
        remedies = [_REMEDIES.get(reason, _DAMAGE_REMEDY) for reason in by_frequency]
        return " ".join(dict.fromkeys(remedies))

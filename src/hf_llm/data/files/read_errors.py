"""Count the records that cannot be read, by reason, with a few examples; raise an error if there are too many."""

from collections import Counter
from dataclasses import dataclass, field

from hf_llm.core.errors import UserError
from hf_llm.core.surrogates import replace_lone_surrogates

MAX_EXAMPLES_PER_REASON = 3  # examples that are kept for each reason
EXCERPT_CHARS = 80
NO_TEXT = "no_text"  # the reason for a page that was read but has no text, which is not an error
MAX_UNREADABLE_SHARE = 0.10  # of a source's records (lines of text, rows, code files)


@dataclass
class ReadErrors:
    """Counts of the records that were read, and of those that were dropped, in one part of the input."""

    records: int = 0
    dropped: Counter = field(default_factory=Counter)  # by reason
    examples: dict[str, list[str]] = field(default_factory=dict)  # by reason

    def drop_record(self, reason: str, where: str, excerpt: bytes | str = "") -> None:
        """Count a record at `where` (file and line) as dropped for `reason`."""
        self.dropped[reason] += 1
        if self.dropped[reason] > MAX_EXAMPLES_PER_REASON:
            return
        example = f"{where}: {reason}"
        if excerpt:
            example += f": {excerpt[:EXCERPT_CHARS]!r}"
        self.examples.setdefault(reason, []).append(replace_lone_surrogates(example))

    def add(self, other: "ReadErrors") -> None:
        """Add the counts and examples of another part."""
        self.records += other.records
        self.dropped.update(other.dropped)
        for reason, examples in other.examples.items():
            all_examples = [*self.examples.get(reason, []), *examples]
            self.examples[reason] = all_examples[:MAX_EXAMPLES_PER_REASON]

    @property
    def samples(self) -> list[str]:
        """The examples of all reasons, one after the other."""
        return [example for examples in self.examples.values() for example in examples]

    def check_dropped_share(self, name: str) -> None:
        """Raise UserError if more than `MAX_UNREADABLE_SHARE` of the records of `name` were dropped."""
        unreadable = self.dropped.total() - self.dropped[NO_TEXT]
        if unreadable > MAX_UNREADABLE_SHARE * max(self.records, 1):
            lines = [f"{name}: {unreadable:,} of {self.records:,} records are unreadable:", *self.samples]
            raise UserError(
                "\n    ".join(lines)
                + "\n  Repair the file or leave it out. Text has to be UTF-8 (`iconv -f latin1 -t utf8` converts)."
            )

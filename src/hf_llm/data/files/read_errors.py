"""Records that could not be read: counted by reason, a few kept to show, and too many of them an error."""

from collections import Counter
from dataclasses import dataclass, field

from hf_llm.core.errors import UserError
from hf_llm.core.surrogates import whole_characters

EXAMPLES = 3  # of records that were dropped for one reason
NO_TEXT = "no_text"  # of a web page: it was read, and there was nothing on it
LIMIT = 0.10  # share of a source's records (lines of text, rows, code files) that may be unreadable


@dataclass
class Faults:
    """What went wrong while one part was read."""

    records: int = 0
    dropped: Counter = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)  # by reason

    def drop(self, reason: str, where: str, excerpt: bytes | str = "") -> None:
        """Count a record of `where` (file and line) as dropped for `reason`."""
        self.dropped[reason] += 1
        if self.dropped[reason] <= EXAMPLES:
            found = self.examples.setdefault(reason, [])
            found.append(whole_characters(f"{where}: {reason}" + (f": {excerpt[:80]!r}" if excerpt else "")))

    def add(self, other: "Faults") -> None:
        """Take the counts of another part into these."""
        self.records += other.records
        self.dropped.update(other.dropped)
        for reason, found in other.examples.items():
            self.examples[reason] = [*self.examples.get(reason, []), *found][:EXAMPLES]

    @property
    def samples(self) -> list[str]:
        """The examples of all reasons, one after the other."""
        return [example for found in self.examples.values() for example in found]

    def check(self, name: str) -> None:
        """Raise UserError where more than `LIMIT` of the records of `name` were dropped."""
        bad = self.dropped.total() - self.dropped[NO_TEXT]
        if bad > LIMIT * max(self.records, 1):
            raise UserError(
                "\n    ".join([f"{name}: {bad:,} of {self.records:,} records are unreadable:", *self.samples])
                + "\n  Mend the file or leave it out. Text has to be UTF-8 (`iconv -f latin1 -t utf8` converts)."
            )

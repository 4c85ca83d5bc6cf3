"""Drop the lines of a page that are no sentences, and pages that have few left (C4's rules)."""

import re
from collections import Counter
from dataclasses import dataclass, field

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from hf_llm.data.corpus.word_tokenizer import sentences

_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_ENDS = (".", "?", "!", '"', "'")
_POLICIES = re.compile("terms of use|privacy policy|cookie policy|uses cookies|use (?:of )?cookies")


@dataclass
class C4:
    """`c4` of the rules: section 2.2 of https://arxiv.org/abs/1910.10683. It changes the text that it keeps."""

    min_sentences: int = field(default=5, metadata={"help": "fewer in the lines that are left drop the document"})
    min_words_per_line: int = field(default=3, metadata={"help": "shorter lines are cut out"})
    max_word_length: int = field(default=1000, metadata={"help": "lines with a longer word are cut out"})
    terminal_punctuation: bool = field(default=True, metadata={"help": "cut out lines not ending in . ? ! or a quote"})
    curly_brackets: bool = field(default=True, metadata={"help": "drop documents with a { in them: most are programs"})


class C4Filter(BaseFilter):
    """The decisions, reasons and texts of datatrove's `C4QualityFilter`."""

    name = "c4"

    def __init__(self, settings: C4):
        super().__init__()
        self.settings = settings

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        kept, count, cut = [], 0, Counter()
        for line in doc.text.splitlines():
            line, reason = self._line(line.strip())
            if reason in ("lorem_ipsum", "curly_bracket"):
                doc.metadata["because"] = f"a line reads {line[:80]!r}"
                return False, reason
            if reason:
                cut[reason] += 1
                continue
            if count < self.settings.min_sentences:
                count += sentences(line, self.settings.min_sentences)
            kept.append(line)
        for reason, lines in cut.items():
            self.stat_update(f"lines_{reason}", value=lines)
        if count < self.settings.min_sentences:
            doc.metadata["because"] = f"{count} sentences in {len(kept)} lines, {cut.total()} lines were cut out"
            return False, "too_few_sentences"
        doc.text = "\n".join(kept).strip()
        return True

    def _line(self, line: str) -> tuple[str, str]:
        """The line without citations, and why it has to go: empty for one that stays."""
        limit = self.settings
        if len(line) > limit.max_word_length and any(len(word) > limit.max_word_length for word in line.split()):
            return line, "too_long_word"
        enough_words = len(line.split(None, limit.min_words_per_line)) >= limit.min_words_per_line
        if "[" in line:
            line = _CITATION.sub("", line)
        if limit.terminal_punctuation and (not line.endswith(_ENDS) or line.endswith("...")):
            return line, "no_terminal_punctuation"
        if not enough_words:
            return line, "too_few_words"
        lower = line.lower()
        if "lorem ipsum" in lower:
            return line, "lorem_ipsum"
        if "javascript" in lower:
            return line, "javascript"
        if limit.curly_brackets and "{" in line:
            return line, "curly_bracket"
        return line, "policy" if _POLICIES.search(lower) else ""

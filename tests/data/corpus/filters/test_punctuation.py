from datatrove.utils import text

from hf_llm.data.corpus.filters.punctuation import PUNCTUATION, TERMINAL_PUNCTUATION


def test_marks_are_those_of_datatrove():
    assert TERMINAL_PUNCTUATION == text.TERMINAL_PUNCTUATION
    assert PUNCTUATION == text.PUNCTUATION_SET

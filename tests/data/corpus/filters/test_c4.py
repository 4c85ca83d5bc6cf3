from datatrove.data import Document

from hf_llm.data.corpus.filters.c4 import C4, C4Filter

PAGE = """Home About Contact
The bridge was built in 1890 [1] by an engineer. It stands still. It is of iron.
Please enable JavaScript to see the map of it.
Read our privacy policy before you go on.
Too short.
It carries two lanes[citation needed] and a path. Trains crossed it once...
Nobody knows why it was painted green. They like it."""


def test_lines_that_are_not_sentences_are_cut_out_and_counted():
    document = Document(text=PAGE, id="")
    verdict = C4Filter(C4()).filter(document)
    assert verdict.is_kept
    assert document.text == (
        "The bridge was built in 1890  by an engineer. It stands still. It is of iron.\n"
        "Nobody knows why it was painted green. They like it."
    )
    assert verdict.changes == {
        "lines_no_terminal_punctuation": 2,
        "lines_javascript": 1,
        "lines_policy": 1,
        "lines_too_few_words": 1,
    }


def test_pages_with_little_left_are_dropped():
    document = Document(text="A line of words.\nMenu", id="")
    verdict = C4Filter(C4()).filter(document)
    assert verdict.reason == "too_few_sentences"
    assert verdict.detail == "1 sentences in 1 lines, 1 lines were cut out"
    assert C4Filter(C4(min_sentences=1)).filter(document).is_kept


def test_programs_stay_when_brackets_are_allowed():
    text = "This is the first of five. Two. Three. Four. A dict is written {} in Python."
    assert C4Filter(C4()).filter(Document(text=text, id="")).reason == "curly_bracket"
    assert C4Filter(C4(curly_brackets=False)).filter(Document(text=text, id="")).is_kept

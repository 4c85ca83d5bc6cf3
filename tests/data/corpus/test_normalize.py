import os
from pathlib import Path

import pytest

from hf_llm.data.corpus.normalize import normalize_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\rc\n", "a\nb\nc"),
        ("a\x00b\x07c\ufeff", "abc"),
        ("  indented\n\tcode  \n", "  indented\n\tcode"),
        ("a\n\n\n\n\n\nb", "a\n\n\nb"),
        ("cafe\u0301", "caf\u00e9"),
        ("schÃ¶n", "schön"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("“quoted” &lt;b&gt; ﬁ ，", "“quoted” &lt;b&gt; ﬁ ，"),
        ("x\ud83d\ude00y", "x\U0001f600y"),
        ("\ud800 alone", "\ufffd alone"),
        ("", ""),
    ],
)
def test_a_text_is_brought_to_one_form(text, expected):
    assert normalize_text(text) == expected


def test_what_is_normalised_stays_as_it_is_and_can_be_written():
    texts = ["a\u2028b \n", "x \x0c \n y", "ﬀ é \r\n\r\n\r\n\r\n\r\n ½"]
    if data := os.environ.get("HF_LLM_DATA"):
        texts += [line for path in Path(data, "langid").rglob("*.txt") for line in path.open(encoding="utf-8")][:2000]
    for text in texts:
        once = normalize_text(text)
        assert normalize_text(once) == once
        once.encode("utf-8")

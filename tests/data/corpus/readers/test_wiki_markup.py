"""Wiki markup to prose."""

import re
import time

import pytest

from hf_llm.data.corpus.readers.wiki_markup import extract_prose


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("'''Bold''' and ''italic''", "Bold and italic"),
        ("a [[cat]] and [[Felis catus|two cats]]s", "a cat and two catss"),
        ("[[New_York#History|]]x [[#Top]]", "x Top"),
        ("[[File:Cat.jpg|thumb|A [[cat]] {{x}}]]See [[:Category:Cats]].[[Category:Cats]]", "See Category:Cats."),
        ("[[fr:Chat]][[zh-yue:貓]]Text [[wikt:cat|cat]]", "Text cat"),
        ("See [https://a.org/x the page], [https://a.org] and https://b.org.", "See the page, and https://b.org."),
        ("One{{cite|a={{b|c}}|[[d]]}} two{{efn|x}}.", "One two."),
        ("It is {{convert|5|km|mi}} long, {{convert|3|to|4|m}} wide.", "It is 5 km long, 3 to 4 m wide."),
        ("{{lang|fr|le mot}}, {{lang-de|das Wort}}, {{nowrap|a b}}", "le mot, das Wort, a b"),
        ("{{As of|2015|6|30}} and {{as of|2012}}", "As of 30 June 2015 and As of 2012"),
        ("A<ref name=x>No {{cite}} [[y]]</ref> b<ref name=x /> c<ref group='n'>d</ref>.", "A b c."),
        ("x<!-- hidden\n\n{{ -->y", "xy"),
        ("one<br/>two <span style='x'>three</span> <small>four</small>", "one\ntwo three four"),
        ("10<sup>6</sup>, 1<sup>st</sup>, H<sub>2</sub>O", "10^6, 1st, H2O"),
        ("<math>\\frac{{a}}{b}</math>", "$\\frac{ {a} }{b}$".replace("} }", "} }")),
        ("a < b and c > d; x<y", "a < b and c > d; x<y"),
        ("fish &amp; chips&nbsp;&ndash; now", "fish & chips – now"),
        ("<nowiki>'''kept'''</nowiki>", "'''kept'''"),
        ("__NOTOC__\nText", "Text"),
        ("Toronto ({{IPA|x}}, {{IPA|y}}) is ( {{x}}; born 1900) {{z}}.", "Toronto is (born 1900)."),
        ("* one\n** two\n# three\n: four\n; five", "- one\n  - two\n- three\nfour\nfive"),
        ("a\n{| class=x\n! h\n|-\n| [[b]] {{c}}\n{|\n| d\n|}\n|}\ne", "a\n\ne"),
        ("a\n<gallery>\nx.jpg|y\n</gallery>\nb", "a\n\nb"),
        ("{{Infobox\n|a = {{b|{{c}}}}\n|d = [[e|f]]\n}}\nText", "Text"),
    ],
)
def test_markup_becomes_prose(markup, text):
    assert extract_prose(markup) == text


def test_the_files_and_categories_of_other_languages_go_by_their_own_names():
    assert extract_prose("[[Datei:a.jpg|mini|x]]a [[Kategorie:B]]", {"datei", "kategorie"}) == "a"


def test_headings_stay_as_lines_where_something_follows():
    markup = "Intro.\n==History==\n=== Early ===\n{{main|x}}\nOld.\n== Empty ==\n{{x}}\n==Later==\nNew."
    assert extract_prose(markup) == "Intro.\n\nHistory\n\nEarly\nOld.\n\nLater\nNew."


def test_appendices_of_links_are_left_out():
    markup = "Text.\n== See also ==\n* [[a]]\n=== Sub ===\nb\n== External links ==\n* [http://a b]\n== Legacy ==\nEnd."
    assert extract_prose(markup) == "Text.\n\nLegacy\nEnd."


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("{{never closed\n|a=b\n\nThe article goes on.", "The article goes on."),
        ("{| class=x\n| a\n| b\nThe article goes on.", "The article goes on."),
        ("[[never closed. The article goes on.", "never closed. The article goes on."),
        ("closed }} twice ]] and |} again", "closed twice and |} again"),
        ("<ref>never closed. The article goes on.", "never closed. The article goes on."),
        ("{{a [[b }} c ]] d", "c d"),
        ("text <!-- never closed", "text"),
    ],
)
def test_brackets_that_nobody_closes_do_not_take_the_article_with_them(markup, text):
    assert extract_prose(markup) == text


HOSTILE = [
    *("{{" * 200_000, "[[" * 40_000 + "}}" * 40_000, "<ref>" * 100_000, "<code>" * 100_000, "<!--" * 200_000),
    *("''" * 200_000, "(" * 400_000, "[http://a " * 50_000, "{|\n" * 30_000, "<math>x</math>" * 30_000, "=" * 400_000),
]


@pytest.mark.parametrize("markup", HOSTILE, ids=lambda markup: markup[:5])
def test_time_grows_with_the_length_of_hostile_markup(markup):
    start = time.perf_counter()
    text = extract_prose(markup)
    assert time.perf_counter() - start < 10
    assert not re.search(r"\{\{|\[\[|<ref", text)

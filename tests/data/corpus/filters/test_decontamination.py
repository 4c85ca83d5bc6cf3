import csv
import json
import os
import random
import re
from pathlib import Path

import numpy as np
import pytest
from datatrove.data import Document

from hf_llm.core.errors import UserError
from hf_llm.data.corpus.filters.decontamination import Decontaminate, EvaluationSet, evaluation_sets
from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.files.tabular import read_rows

DATA = os.environ.get("HF_LLM_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="HF_LLM_DATA is not set")
FILLER = "Here is a page about something else altogether, with a few sentences of its own. It goes on for a while."


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return EvaluationSet(path=str(path))


def make_filter(folder, *sets, **settings):
    section = Decontaminate(list(sets), **settings)
    section.write_index(folder / "index")
    return section.make_filter(folder / "index")


def detail(decontamination, text):
    """The detail with which a text is dropped; None where it is kept."""
    verdict = decontamination.filter(Document(text=text, id=""))
    assert verdict.reason in ("", "evaluation_text")
    return None if verdict.is_kept else verdict.detail


def words(count, seed=0):
    rng = random.Random(seed)
    return [f"w{rng.getrandbits(30):x}" for _ in range(count)]


@pytest.mark.parametrize("count", [6, 8, 12, 13, 14, 20, 200])
def test_a_planted_item_is_found_whatever_its_length(tmp_path, count):
    item = words(count)
    step = make_filter(
        tmp_path, write_rows(tmp_path / "quiz.jsonl", [{"q": "Something else that nobody says"}, {"q": " ".join(item)}])
    )
    planted = f"{FILLER} {' '.join(item)} {FILLER}"
    assert detail(step, planted) == f"quiz.jsonl, row 2: {' '.join(item[:13])!r}"
    assert detail(step, " ".join(item)) and detail(step, FILLER) is None


def test_case_punctuation_and_line_breaks_hide_nothing(tmp_path):
    items = [{"q": "Which of these, if any, is the “capital” of Upper Volta?"}, {"q": "L'Été à l'île d'Oléron"}]
    step = make_filter(tmp_path, write_rows(tmp_path / "quiz.jsonl", items))
    assert detail(step, f"{FILLER}\n* which of these if any\nis the 'Capital' of UPPER VOLTA: no")
    assert detail(step, f"{FILLER} (l’été à l’île d’Oléron)")
    assert detail(step, f"{FILLER} which of these if any is a capital of Upper Volta") is None


def test_thirteen_words_of_a_long_item_are_enough_and_twelve_are_not(tmp_path):
    item = words(40)
    step = make_filter(tmp_path, write_rows(tmp_path / "quiz.jsonl", [{"q": " ".join(item)}]))
    for start in range(28):
        assert detail(step, f"{FILLER} {' '.join(item[start : start + 13])} {FILLER}")
        assert detail(step, f"{FILLER} {' '.join(item[start : start + 12])} {FILLER}") is None


def test_a_short_item_has_to_be_there_as_a_whole(tmp_path):
    item = words(10)
    step = make_filter(
        tmp_path, write_rows(tmp_path / "quiz.jsonl", [{"q": " ".join(item)}, {"q": " ".join([*item[:7], "x", "y"])}])
    )
    assert detail(step, f"{FILLER} {' '.join(item[:9])} {FILLER}") is None
    assert detail(step, f"{FILLER} {' '.join(item[1:])}") is None
    assert detail(step, f"{FILLER} {' '.join(item[:6])} {' '.join(item)}").startswith("quiz.jsonl, row 1")
    assert detail(step, f"{FILLER} {' '.join(item[:7])} x y {FILLER}").startswith("quiz.jsonl, row 2")


def test_items_shorter_than_the_minimum_are_counted_and_not_searched_for(tmp_path):
    rows = [{"q": " ".join(words(n, n))} for n in (3, 5, 6, 12, 13, 30)]
    step = make_filter(tmp_path, write_rows(tmp_path / "quiz.jsonl", rows))
    assert detail(step, f"{FILLER} {rows[1]['q']} {FILLER}") is None
    name = str(tmp_path / "quiz.jsonl")
    expected = {"name": name, "rows": 6, "long": 2, "short": 2, "too_short": 2, "form": 0}
    assert evaluation_sets(tmp_path / "index") == [expected]


def test_what_the_questions_of_a_set_have_in_common_is_not_searched_for(tmp_path):
    form = "Read the following passage with care and then answer the question that is put below it in one word:"
    instruction = "You are a helpful assistant that answers every question as briefly as it possibly can, in English."
    short = "Is the following sentence true?"
    rows = [{"q": f"{form} {' '.join(words(20, n))}", "i": instruction, "s": short} for n in range(30)]
    step = make_filter(tmp_path, write_rows(tmp_path / "quiz.jsonl", rows), min_words=5)
    for text in (form, instruction, short):
        assert detail(step, f"{FILLER} {text} {FILLER}") is None
    assert detail(step, f"{FILLER} {rows[7]['q']}").startswith("quiz.jsonl, row 8")
    assert evaluation_sets(tmp_path / "index")[0]["form"] == 2


def test_a_passage_that_several_questions_share_is_not_form(tmp_path):
    passages = [" ".join(words(60, n)) for n in range(5)]
    rows = [{"passage": passages[n % 5], "question": " ".join(words(9, n + 100))} for n in range(100)]
    step = make_filter(tmp_path, write_rows(tmp_path / "quiz.jsonl", rows))
    assert all(detail(step, f"{FILLER} {passage}") for passage in passages)


def test_lists_and_dictionaries_of_texts_are_items_too_and_addresses_are_not(tmp_path):
    ending, answer = " ".join(words(8, 1)), " ".join(words(9, 2))
    address = "https://example.org/a/long/path/to/some/page/on/the/web"
    row = {
        "ctx": FILLER,
        "endings": ["short", ending],
        "answers": {"text": [answer], "start": [3]},
        "url": address,
        "n": 1,
    }
    step = make_filter(tmp_path, write_rows(tmp_path / "quiz.jsonl", [row]))
    assert detail(step, f"Before it {ending} after it") and detail(step, f"Before it {answer} after it")
    assert detail(step, f"Before it {address} after it") is None


def test_only_the_columns_that_are_named_count(tmp_path):
    question, comment = " ".join(words(15, 1)), " ".join(words(15, 2))
    rows = write_rows(tmp_path / "quiz.jsonl", [{"question": question, "comment": comment}])
    rows.columns = ["question"]
    step = make_filter(tmp_path, rows)
    assert detail(step, question) and detail(step, comment) is None
    rows.columns = ["query"]
    with pytest.raises(UserError, match=r"no column 'query'.*question, comment"):
        make_filter(tmp_path, rows)


def test_the_first_row_of_a_csv_without_a_header_is_an_item(tmp_path):
    rows = [[" ".join(words(9, n)), "yes", "no", "A"] for n in range(3)]
    with open(tmp_path / "quiz.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    step = make_filter(tmp_path, EvaluationSet(path=str(tmp_path / "quiz.csv")))
    assert all(detail(step, f"{FILLER} {row[0]}") for row in rows)
    assert detail(step, f"{FILLER} {rows[0][0]}").startswith("quiz.csv, row 0")


def test_rows_of_the_hub_are_read_by_their_split(tmp_path):
    test, train = " ".join(words(9, 1)), " ".join(words(9, 2))
    (tmp_path / "hub").mkdir()
    write_rows(tmp_path / "hub/test.jsonl", [{"question": test}])
    write_rows(tmp_path / "hub/train.jsonl", [{"question": train}])
    step = make_filter(tmp_path, EvaluationSet(hub=str(tmp_path / "hub")))
    assert detail(step, f"{FILLER} {test}") == f"{tmp_path / 'hub'} test, row 1: {test!r}"
    assert detail(step, f"{FILLER} {train}") is None


def test_numbers_in_a_row_are_not_evaluation_text(tmp_path):
    step = make_filter(tmp_path, write_rows(tmp_path / "quiz.jsonl", [{"q": f"Sum {list(range(40))} up"}]))
    assert detail(step, f"{FILLER} {list(range(30))}") is None
    assert detail(step, f"{FILLER} {list(range(40))} up")


def test_characters_are_words_in_chinese(tmp_path):
    question = "下列哪一个城市是上沃尔特的首都呢"
    step = make_filter(tmp_path, write_rows(tmp_path / "quiz.jsonl", [{"q": question}]))
    assert detail(step, f"这是一篇文章。{question}？是的。") and detail(step, "下列哪一个城市是首都呢") is None


def test_the_index_is_kept_until_settings_or_files_change(tmp_path):
    rows = write_rows(tmp_path / "quiz.jsonl", [{"q": " ".join(words(20))}])
    make_filter(tmp_path, rows)
    index, report = tmp_path / "index/evaluation_texts.npz", tmp_path / "index/evaluation_texts.json"
    first = report.read_bytes()
    index.write_bytes(b"kept")
    make_filter(tmp_path, rows)
    assert index.read_bytes() == b"kept"
    make_filter(tmp_path, rows, min_words=7)
    assert index.read_bytes() != b"kept" and report.read_bytes() != first
    write_rows(tmp_path / "quiz.jsonl", [{"q": " ".join(words(20, 1))}])
    step = make_filter(tmp_path, rows, min_words=7)
    assert detail(step, " ".join(words(20, 1))) and detail(step, " ".join(words(20))) is None


def test_the_index_is_the_same_when_it_is_made_again(tmp_path):
    rows = write_rows(
        tmp_path / "quiz.jsonl", [{"q": " ".join(words(n, n)), "a": ["one two three four five six"]} for n in range(50)]
    )
    contents = []
    for name in ("a", "b"):
        Decontaminate([rows]).write_index(tmp_path / name)
        with np.load(tmp_path / name / "evaluation_texts.npz") as index:
            contents.append({key: index[key].tobytes() for key in index})
        contents.append((tmp_path / name / "evaluation_texts.json").read_bytes())
    assert contents[:2] == contents[2:]


def test_a_set_without_texts_says_so(tmp_path):
    with pytest.raises(UserError, match=r"2 rows and no text of 6 words"):
        make_filter(tmp_path, write_rows(tmp_path / "quiz.jsonl", [{"q": "too short"}, {"q": ""}]))
    with pytest.raises(UserError, match="does not exist"):
        make_filter(tmp_path, EvaluationSet(path=str(tmp_path / "nowhere.jsonl")))


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({}, "exactly one"),
        ({"path": "a", "hub": "b"}, "exactly one"),
        ({"path": "a", "subset": "b"}, "belong to `hub`"),
        ({"path": "a", "columns": []}, "columns is empty"),
    ],
)
def test_evaluation_sets_are_checked(wrong, match):
    with pytest.raises(ValueError, match=match):
        EvaluationSet(**wrong)


@pytest.mark.parametrize("wrong", [{"min_words": 1}, {"min_words": 14}, {"ngram": 1}])
def test_settings_are_checked(wrong):
    with pytest.raises(ValueError, match="min_words"):
        Decontaminate([EvaluationSet(path="a")], **wrong)


REAL = {  # sets of HF_LLM_DATA, and the columns that hold what is asked
    "hellaswag/hellaswag_val_500a.jsonl": ["ctx", "endings"],
    "gsm8k/test_300.jsonl": ["question", "answer"],
    "humaneval/HumanEval.jsonl.gz": ["prompt", "canonical_solution"],
    "mmlu/test/*.csv": None,
    "mc_misc/lambada_openai.jsonl": ["context"],
    "mc_misc/arc_easy.jsonl": ["query", "choices"],
}


def real_sets():
    return [EvaluationSet(path=str(Path(DATA, path)), columns=columns) for path, columns in REAL.items()]


def clean_documents():
    web = Path(DATA, "web_text/c4_demo.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [json.loads(line)["text"] for line in web]
    texts += Path(DATA, "wikitext2/valid.txt").read_text(encoding="utf-8").split("\n = ")
    book = Path(DATA, "gutenberg/moby_dick_pg2701.txt").read_text(encoding="utf-8").split()
    texts += [" ".join(book[i : i + 500]) for i in range(0, len(book), 500)]
    return texts + [path.read_text(encoding="utf-8") for path in Path(os.__file__).parent.glob("[a-d]*.py")]


def real_items():
    """Every text of six words or more in the columns of the real sets."""
    for path, columns in REAL.items():
        for file in sorted(Path(DATA).glob(path)):
            for _, row in read_rows(file, ReadErrors()):
                values = [row[column] for column in columns or row]
                for text in [text for value in values for text in (value if isinstance(value, list) else [value])]:
                    if len(re.findall(r"[^\W_]+", text)) >= 6:
                        yield text


@needs_data
def test_items_of_real_sets_are_found_and_clean_documents_are_kept(tmp_path):
    step = make_filter(tmp_path, *real_sets())
    clean = clean_documents()
    assert len(clean) > 1000
    assert [detail(step, text) for text in clean if detail(step, text)] == []
    rng = random.Random(0)
    items = rng.sample(list(real_items()), 1000)
    for text in items:
        host = rng.choice(clean)
        cut = rng.randrange(len(host))
        assert detail(step, f"{host[:cut]} {text.upper()} {host[cut:]}"), text


@pytest.mark.parametrize("key", ["path", "hub"])
def test_an_empty_name_of_a_set_is_refused(key):
    with pytest.raises(ValueError, match=f"{key} is empty"):
        EvaluationSet(**{key: " "})


def test_a_row_of_a_set_without_the_column_is_counted_and_stops_nothing(tmp_path):
    path = tmp_path / "set.jsonl"
    rows = [{"other": "x"}, *({"question": f"What is the answer number {i} of the good old set?"} for i in range(20))]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = Decontaminate([EvaluationSet(path=str(path), columns=["question"])])
    settings.write_index(tmp_path)
    with pytest.raises(UserError, match="no column 'answer'"):
        Decontaminate([EvaluationSet(path=str(path), columns=["answer"])]).write_index(tmp_path)

"""The entries of `evaluate.references`: which files they read, and what their scores are of."""

import csv
import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

from hf_llm.core.errors import UserError
from hf_llm.core.recipe import find_problems
from hf_llm.evaluation.journal import Journal
from hf_llm.evaluation.text_metrics.references import ReferenceSet, load_reference_benchmarks
from tests.evaluation.evaluated import by_metric, run, save_model

DATA = os.environ.get("HF_LLM_DATA", "")
KEY = "evaluate.references[0]"
PAIRS = [("Who lives here?", "A cat lives here."), ("What is it?", "It is a dog."), ("Why?", "Nobody knows why.")]


@dataclass
class Section:
    references: list[ReferenceSet] = field(default_factory=list)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("tiny"))


def load(is_chat: bool = False, **keys):
    return load_reference_benchmarks(ReferenceSet(**keys), is_chat, KEY)


def write_rows(folder: Path, suffix: str, rows: list[dict]) -> Path:
    path = folder / f"rows{suffix}"
    if suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif suffix == ".csv":
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_rows_of_any_table_become_the_same_documents(tmp_path, suffix):
    path = write_rows(tmp_path, suffix, [{"question": q, "gold": a} for q, a in PAIRS])
    (benchmark,) = load(path=str(path), prompt_column="question", reference_column="gold")
    texts = [(document.prompt[0]["content"], *document.references) for document in benchmark.documents]
    assert texts == PAIRS
    assert benchmark.name == "rows" and benchmark.needs_model


def test_text_files_belong_together_line_by_line(tmp_path):
    (tmp_path / "in.txt").write_text("one\r\ntwo\r\n", encoding="utf-8")
    (tmp_path / "a.txt").write_text("eins\nzwei", encoding="utf-16")
    (tmp_path / "b.txt").write_text("ein\n\n", encoding="utf-8")
    files = [str(tmp_path / "a.txt"), str(tmp_path / "b.txt")]
    (benchmark,) = load(prompts=str(tmp_path / "in.txt"), references=files)
    assert [document.references for document in benchmark.documents] == [["eins", "ein"], ["zwei"]]
    assert benchmark.settings["bleu_signature"].startswith("nrefs:var|")


def test_rows_without_prompt_or_reference_are_counted(tmp_path):
    rows = [{"prompt": "a", "reference": "b"}, {"prompt": "a", "reference": [""]}, {"prompt": " ", "reference": "b"}]
    path = write_rows(tmp_path, ".jsonl", rows)
    with open(path, "a", encoding="utf-8") as file:
        file.write("{broken\n")
    (benchmark,) = load(path=str(path))
    assert benchmark.settings["rows"] == 1
    assert benchmark.settings["dropped"] == {"no reference": 1, "no prompt": 1, "malformed JSON": 1}


def test_given_texts_need_no_model(tmp_path):
    (tmp_path / "system.txt").write_text("A cat lives here.\n\nNobody knows.\n", encoding="utf-8")
    (tmp_path / "gold.txt").write_text("".join(f"{answer}\n" for _, answer in PAIRS), encoding="utf-8")
    (benchmark,) = load(hypotheses=str(tmp_path / "system.txt"), references=str(tmp_path / "gold.txt"))
    assert not benchmark.needs_model
    rows = run(benchmark, None, tmp_path / "journal", world_size=2)
    assert [row["response"] for row in rows] == ["A cat lives here.", "", "Nobody knows."]
    scores = by_metric(benchmark.summarize(rows))
    assert list(scores) == ["bleu", "rougeL", "chrf"]
    assert scores["rougeL"].value == pytest.approx((1 + 0 + 4 / 5) / 3)
    assert scores["bleu"].low is None  # three documents say nothing of how much others would differ


def test_answers_are_scored_and_resumed_and_the_same_for_two_processes(tmp_path, model):
    rows = [
        {"prompt": f"{question} {number}", "reference": answer} for number in range(9) for question, answer in PAIRS
    ]
    (benchmark,) = load(path=str(write_rows(tmp_path, ".jsonl", rows)), max_new_tokens=8)
    alone = run(benchmark, model, tmp_path / "alone")
    assert len(alone) == 27 and all(set(row["scores"]) == {"bleu", "rougeL", "chrf"} for row in alone)

    Journal(tmp_path / "killed").append(alone[4:11])
    resumed = run(benchmark, model, tmp_path / "killed")
    assert resumed == alone
    assert len((tmp_path / "killed" / "documents.0.jsonl").read_text(encoding="utf-8").splitlines()) == 27
    assert run(benchmark, model, tmp_path / "two", world_size=2) == alone

    scores = by_metric(benchmark.summarize(alone))
    assert scores["unfinished_answers"].value > 0  # a model of random weights does not end within eight tokens
    assert scores["bleu"].documents == 27
    part = by_metric(benchmark.summarize(alone[:15]))  # as for the part of a task that was not trained on
    assert part["bleu"].documents == 15


def test_a_prompt_that_does_not_fit_is_said(tmp_path, model):
    path = write_rows(tmp_path, ".jsonl", [{"prompt": "x" * 400, "reference": "y"}, {"prompt": "x", "reference": "y"}])
    for prompt_format in ("plain", "chat"):
        (benchmark,) = load(path=str(path), max_new_tokens=4, prompt_format=prompt_format)
        scores = by_metric(benchmark.summarize(run(benchmark, model, tmp_path / prompt_format)))
        assert scores["cut_prompts"].value == 0.5


def test_the_prompt_format_follows_the_model(tmp_path):
    path = str(write_rows(tmp_path, ".jsonl", [{"prompt": "x", "reference": "y"}]))
    assert [b.as_chat for b in load(path=path)] == [False]
    assert [b.as_chat for b in load(is_chat=True, path=path)] == [True]
    assert [(b.name, b.as_chat) for b in load(path=path, prompt_format="both")] == [
        ("rows", False),
        ("rows (chat)", True),
    ]


def test_what_scores_depend_on_is_identified(tmp_path):
    path = write_rows(tmp_path, ".jsonl", [{"prompt": q, "reference": a} for q, a in PAIRS])
    identities = [load(path=str(path))[0].identify(), load(path=str(path), max_new_tokens=9)[0].identify()]
    identities += [
        load(path=str(path), bleu_tokenizer="char")[0].identify(),
        load(path=str(path), limit=2)[0].identify(),
    ]
    path.write_text(path.read_text(encoding="utf-8").replace("dog", "fox"), encoding="utf-8")
    identities.append(load(path=str(path))[0].identify())
    assert len({json.dumps(identity, sort_keys=True) for identity in identities}) == 5


def test_rouge_says_which_texts_it_reads_in_part(tmp_path):
    path = write_rows(tmp_path, ".jsonl", [{"prompt": "a", "reference": "schön"}, {"prompt": "a", "reference": "ja"}])
    (benchmark,) = load(path=str(path))
    assert "1 of 2 references" in benchmark.settings["rouge_note"]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({}, "give `path`"),
        ({"path": "a.jsonl", "prompts": "b.txt"}, "leave out prompts"),
        ({"prompts": "a.txt"}, "give `path`"),
        ({"prompts": "a.txt", "hypotheses": "b.txt", "references": "c.txt"}, "either `prompts` or `hypotheses`"),
        ({"path": "a.jsonl", "metrics": ["blue"]}, "'blue' is unknown"),
        ({"path": "a.jsonl", "metrics": []}, "metrics is empty"),
        ({"path": "a.jsonl", "limit": 0}, "limit is 0"),
        ({"path": "a.jsonl", "bleu_tokenizer": "flores200"}, "does not fit"),
        ({"path": "a.jsonl", "colum": "x"}, "no such key"),
    ],
)
def test_a_wrong_entry_names_its_key(keys, problem):
    _, problems = find_problems(Section, {"references": [keys]}, ["references"])
    assert len(problems) == 1
    assert "references[0]" in problems[0] and problem in problems[0]


def test_one_file_of_references_or_several_can_be_named():
    for files in ("a.txt", ["a.txt", "b.txt"]):
        section, problems = find_problems(
            Section, {"references": [{"prompts": "p.txt", "references": files}]}, ["references"]
        )
        assert not problems and section.references[0].references == ([files] if isinstance(files, str) else files)


def test_wrong_files_are_named(tmp_path):
    path = str(write_rows(tmp_path, ".jsonl", [{"prompt": "x", "answer": "y"}]))
    with pytest.raises(
        UserError, match=r"no column 'reference'; it has prompt, answer.*references\[0\].reference_column"
    ):
        load(path=path)
    with pytest.raises(UserError, match=r"missing\.jsonl"):
        load(path=str(tmp_path / "missing.jsonl"))
    (tmp_path / "long.txt").write_text("a\nb\n", encoding="utf-8")
    (tmp_path / "short.txt").write_text("a\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"long.txt has 2 lines and .*short.txt has 1"):
        load(prompts=str(tmp_path / "long.txt"), references=str(tmp_path / "short.txt"))
    with pytest.raises(UserError, match=r"references\[0\].prompts: .*gone.txt"):
        load(prompts=str(tmp_path / "gone.txt"), references=str(tmp_path / "short.txt"))
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="no row to score"):
        load(path=str(tmp_path / "empty.jsonl"))


@pytest.mark.skipif(not DATA, reason="HF_LLM_DATA is not set")
def test_a_system_of_wmt17_has_its_published_bleu_with_an_interval(tmp_path):
    folder = Path(DATA) / "bleu_wmt17"
    system = folder / "newstest2017.C-3MA.4959.en-de.txt"
    (benchmark,) = load(hypotheses=str(system), references=str(folder / "reference.de"), metrics=["bleu", "chrf"])
    scores = by_metric(benchmark.summarize(run(benchmark, None, tmp_path)))
    assert round(scores["bleu"].value, 2) == 22.67
    assert scores["bleu"].documents == 3004
    assert 0.5 < scores["bleu"].high - scores["bleu"].low < 3
    assert benchmark.settings["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a")

"""Benchmarks of our own making: what is scored is kept, what is killed goes on, what cannot be run says so."""

import json

import pytest

from hf_llm.evaluation.benchmark import Benchmark, NotRunError, score_means, score_shares
from hf_llm.evaluation.benchmark_scores import list_benchmark_scores, list_group_scores
from hf_llm.evaluation.evaluated_model import EvaluatedModel
from hf_llm.evaluation.journal import Journal
from hf_llm.evaluation.run_benchmark import read_documents, run_benchmark
from hf_llm.evaluation.score_store import ScoreStore
from hf_llm.evaluation.score_table import describe_models, format_benchmark_table, format_model_table


class Parity(Benchmark):
    """Documents are numbers, and the model is right about those that are divisible by three."""

    def __init__(self, documents=10, name="parity", dies_after=None):
        self.name = name
        self.documents = documents
        self.dies_after = dies_after
        self.settings = {"shots": 0}
        self.scored = []

    def identify(self):
        return {"documents": self.documents}

    def score_documents(self, model, journal):
        for name in journal.select_documents(str(number) for number in range(self.documents)):
            if self.dies_after is not None and len(self.scored) == self.dies_after:
                raise KeyboardInterrupt
            self.scored.append(name)
            score = float(int(name) % 3 == 0)
            journal.append([{"id": name, "prompt": f"{name}?", "response": "", "target": "", "scores": {"acc": score}}])

    def summarize(self, rows):
        return [score_shares("acc", [row["scores"]["acc"] for row in rows], choices=[2] * len(rows), is_primary=True)]

    def read_texts(self):
        for number in range(self.documents):
            yield str(number), [f"{number}?"]


@pytest.fixture
def store(tmp_path):
    return ScoreStore(tmp_path / "evaluation")


@pytest.fixture
def model(tmp_path):
    return EvaluatedModel("base", tmp_path / "base")


def test_a_benchmark_is_scored_once(store, model, tmp_path):
    first = run_benchmark(Parity(), model, store)
    again = Parity()
    assert run_benchmark(again, model, store) == json.loads(json.dumps(first))
    assert again.scored == []
    (score,) = first["scores"]
    assert score["value"] == 0.4
    assert score["documents"] == 10
    assert score["chance"] == 0.5
    assert score["at_chance"]
    assert [row["id"] for row in read_documents(tmp_path / "evaluation", first)] == [str(n) for n in range(10)]


@pytest.mark.parametrize("change", ["documents", "model", "name"])
def test_what_a_score_depends_on_makes_it_new(store, model, tmp_path, change):
    run_benchmark(Parity(), model, store)
    changed = Parity(documents=11 if change == "documents" else 10, name="other" if change == "name" else "parity")
    other_model = EvaluatedModel("base", tmp_path / "another") if change == "model" else model
    run_benchmark(changed, other_model, store)
    assert len(changed.scored) == changed.documents
    unchanged = Parity()
    run_benchmark(unchanged, model, store)  # what was scored first is still there
    assert unchanged.scored == []


def test_a_killed_benchmark_goes_on_where_it_was(store, model):
    with pytest.raises(KeyboardInterrupt):
        run_benchmark(Parity(dies_after=8), model, store)
    resumed = Parity()
    result = run_benchmark(resumed, model, store)
    assert resumed.scored == ["8", "9"]
    assert result["scores"][0]["documents"] == 10


def test_a_line_that_was_cut_off_is_scored_again(tmp_path):
    journal = Journal(tmp_path)
    journal.append([{"id": "0"}, {"id": "1"}])
    with open(journal.path, "a", encoding="utf-8") as file:
        file.write('{"id": "2", "respo')
    journal = Journal(tmp_path)
    assert journal.finished == {"0", "1"}
    journal.append([{"id": "2"}])
    assert [row["id"] for row in journal.read()] == ["0", "1", "2"]


def test_documents_are_dealt_out_and_what_any_process_has_scored_counts(tmp_path):
    names = [str(number) for number in range(7)]
    parts = [Journal(tmp_path, rank, 2).select_documents(names) for rank in range(2)]
    assert sorted(parts[0] + parts[1]) == names
    for rank, part in enumerate(parts):
        Journal(tmp_path, rank, 2).append({"id": name} for name in part[:2])
    left = Journal(tmp_path).select_documents(names)
    assert set(left) == set(parts[0][2:] + parts[1][2:])


def test_what_cannot_be_run_says_why_and_is_tried_again(store, model):
    class Lacking(Parity):
        def score_documents(self, model, journal):
            raise NotRunError("its file has no column `answer`")

    result = run_benchmark(Lacking(), model, store)
    assert result["not_run"] == "its file has no column `answer`"
    assert result["scores"] == []
    assert run_benchmark(Parity(), model, store)["scores"]


def test_chance_and_majority_come_from_the_data():
    score = score_shares("acc", [1, 0, 1, 1], choices=[2, 4, 4, 4], labels=[0, 1, 2, 1])
    assert score.chance == pytest.approx((0.5 + 3 * 0.25) / 4)
    assert score.majority is None  # a position means nothing where the number of answers differs
    same = score_shares("acc", [1, 0, 1, 1], choices=[4] * 4, labels=[1, 1, 2, 1])
    assert same.majority == 0.75


@pytest.mark.parametrize(
    ("right", "labels", "is_at_chance"),
    [(26, None, True), (60, None, False), (5, None, False), (60, [0] * 62 + [1] * 38, True)],
)
def test_a_score_at_chance_is_told(right, labels, is_at_chance):
    values = [1] * right + [0] * (100 - right)
    assert score_shares("acc", values, choices=[4] * 100, labels=labels).is_at_chance == is_at_chance


def test_a_mean_has_an_interval_that_narrows_with_documents():
    few = score_means("loss", [0.0, 1.0] * 10, better="lower")
    many = score_means("loss", [0.0, 1.0] * 1000, better="lower")
    assert few.value == many.value == 0.5
    assert few.low < many.low < 0.5 < many.high < few.high


def test_the_table_marks_what_is_at_chance(store, model):
    models = {"base": {"benchmarks": {"parity": run_benchmark(Parity(), model, store)}}}
    (row,) = list_benchmark_scores(models["base"])
    assert row.chance == "50.0%, at chance"
    assert row.overlap_text == "unknown"
    table = format_benchmark_table(models).splitlines()
    assert table[0].split() == ["benchmark", "base", "chance"]
    assert table[1].split()[:3] == ["parity", "acc", "40.0%"]
    assert table[1].split()[-2].endswith(")?")
    assert table[2].strip() == "? not distinguishable from chance"
    assert format_benchmark_table({"base": {}}) == ""


def group_result(right, overlapping, share=0.0):
    score = score_shares("acc", [1] * right + [0] * (10 - right), choices=[4] * 10, is_primary=True)
    overlap = {"documents": overlapping, "all_documents": 10, "share": share}
    return {"scores": [score.to_json()], "settings": {}, "group": "mmlu", "overlap": overlap}


def test_a_group_is_the_mean_over_the_documents_of_its_tasks():
    not_run = {"scores": [], "settings": {}, "group": "mmlu", "not_run": "no rows"}
    benchmarks = {"a": group_result(3, ["1"]), "b": group_result(6, []), "c": not_run}
    (row,) = list_group_scores({"benchmarks": benchmarks})
    assert row.title == "mmlu (2 of 3 tasks) acc"
    assert row.score.value == pytest.approx(0.45)
    assert row.score.documents == 20
    assert row.score.chance == 0.25
    assert row.overlap_text == "5.0% of the documents"


def test_the_overlap_of_a_group_is_unknown_where_that_of_a_task_is():
    benchmarks = {"a": group_result(3, ["1"]), "b": group_result(6, [], share=None)}
    (row,) = list_group_scores({"benchmarks": benchmarks})
    assert row.overlap_text == "at least 5.0% of the documents"
    benchmarks["b"]["overlap"] = {}
    (row,) = list_group_scores({"benchmarks": benchmarks})
    assert row.overlap_text == "unknown"


def test_the_headline_counts_what_was_run_of_any_model():
    not_run = {"scores": [], "settings": {}, "group": "", "not_run": "no rows"}
    models = {
        "base": {"bits_per_byte": 1.5, "benchmarks": {"a": group_result(3, []), "b": not_run}},
        "dpo": {"bits_per_byte": 1.75, "benchmarks": {"a": not_run, "b": not_run}},
    }
    bits = "base 1.500, dpo 1.750 bits per byte on the test split (lower is better)"
    assert describe_models(models) == f"{bits}, 1 benchmark (1 more were not run)"
    assert describe_models({"base": {}, "dpo": {}}) == "answers of 2 models"


def test_the_table_of_models_has_the_columns_that_any_of_them_has():
    models = {"base": {"bits_per_byte": 1.5, "tokens": 1234}, "dpo": {"bits_per_byte": 2.0, "stop_rate": 0.5}}
    titles, base, dpo = (line.split("  ") for line in format_model_table(models).splitlines())
    assert [title.strip() for title in titles if title.strip()] == ["model", "bits per byte", "EOS rate", "tokens"]
    assert [cell.strip() for cell in base if cell.strip()] == ["base", "1.5000", "1,234"]
    assert [cell.strip() for cell in dpo if cell.strip()] == ["dpo", "2.0000", "50%"]

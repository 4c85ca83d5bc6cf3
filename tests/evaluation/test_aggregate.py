"""The mean of benchmarks centred on chance, and when it may be called CORE."""

import re
from pathlib import Path

import numpy as np
import pytest

from hf_llm.evaluation.aggregate import CORE, centre_scores, find_missing_core_tasks
from hf_llm.evaluation.benchmark import score_means, score_shares


def result(right, documents=100, choices=4, group="", shots=0, **changes):
    values = [1.0] * right + [0.0] * (documents - right)
    score = score_shares("acc", values, choices=[choices] * documents if choices else None, is_primary=True)
    other = score_shares("acc_norm", [1.0] * documents)
    return {"scores": [other.to_json(), {**score.to_json(), **changes}], "settings": {"shots": shots}, "group": group}


def test_centre_scores_puts_chance_at_0_and_no_mistake_at_1():
    aggregate = centre_scores({"a": result(25), "b": result(100), "c": result(10), "d": result(50, choices=None)})
    assert aggregate.tasks == pytest.approx({"a": 0, "b": 1, "c": -0.2, "d": 0.5})
    assert aggregate.value == pytest.approx(1.3 / 4)
    assert aggregate.name == "centred mean of 4 tasks"
    assert aggregate.describe().startswith("centred mean of 4 tasks 32.5% (")
    assert centre_scores({"a": result(25)}).name == "centred mean of 1 task"


def test_the_interval_holds_the_mean_of_guessing_models_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    widths = []
    for _ in range(300):
        aggregate = centre_scores({f"t{n}": result(int(rng.binomial(400, 0.25)), 400) for n in range(5)})
        hits += aggregate.low <= 0 <= aggregate.high
        widths.append(aggregate.high - aggregate.low)
    assert 0.91 <= hits / 300 <= 0.985
    one = centre_scores({"t": result(100, 400)})
    assert np.mean(widths) == pytest.approx((one.high - one.low) / 5**0.5, rel=0.1)


def test_a_group_and_a_task_in_two_formats_count_once():
    benchmarks = {
        "mmlu_law": result(25, group="mmlu", shots=5),
        "mmlu_art": result(100, group="mmlu", shots=5),
        "piqa (plain)": result(50, choices=2),
        "piqa (chat)": result(100, choices=2),
    }
    assert centre_scores(benchmarks).tasks == {"mmlu": 0.5, "piqa": 0.5}


def test_one_task_with_two_numbers_of_shots_is_two_tasks():
    aggregate = centre_scores({"hellaswag": result(25), "hellaswag (10 shots)": result(100, shots=10)})
    assert aggregate.tasks == {"hellaswag, 0 shots": 0, "hellaswag, 10 shots": 1}


def test_what_is_no_share_of_right_answers_is_left_out_and_named():
    perplexity = score_means("word_perplexity", [9.0, 11.0], better="lower", is_primary=True).to_json()
    bleu = score_means("bleu", [30.0, 40.0], number_format=".1f", is_primary=True).to_json()
    benchmarks = {
        "piqa": result(60, choices=2),
        "wikitext": {"scores": [perplexity], "settings": {}},
        "texts": {"scores": [bleu], "settings": {}},
        "pairs": result(60, better=None),
        "boolq": {"scores": [], "settings": {}, "not_run": "its file is not there"},
    }
    aggregate = centre_scores(benchmarks)
    assert list(aggregate.tasks) == ["piqa"]
    assert list(aggregate.left_out) == ["wikitext", "texts", "pairs", "boolq"]
    assert aggregate.left_out["boolq"] == "not run: its file is not there"
    assert "not counted: wikitext, texts" in aggregate.describe()
    del benchmarks["piqa"]
    assert centre_scores(benchmarks) is None


def test_without_an_interval_of_a_task_there_is_none_of_the_mean():
    aggregate = centre_scores({"a": result(30), "b": result(30, low=None, high=None)})
    assert (aggregate.low, aggregate.high) == (None, None)


def core_benchmarks():
    benchmarks = {}
    for task in CORE:
        name = task.names[0]
        benchmarks[f"{name} ({task.shots} shots)" if name in benchmarks else name] = result(50, shots=task.shots)
    return benchmarks


def test_only_all_22_tasks_with_their_shots_are_called_core():
    benchmarks = core_benchmarks()
    assert len(benchmarks) == 22
    assert centre_scores(benchmarks).name == "CORE"
    for name in benchmarks:
        fewer = {other: entry for other, entry in benchmarks.items() if other != name}
        assert centre_scores(fewer).name == "centred mean of 21 tasks"
    other_shots = benchmarks | {"piqa": result(50, shots=1)}
    assert centre_scores(other_shots).name == "centred mean of 22 tasks"
    assert centre_scores(benchmarks | {"mmlu": result(50)}).name == "centred mean of 23 tasks"
    failed = benchmarks | {"piqa": {"scores": [], "settings": {}, "not_run": "no file"}}
    assert centre_scores(failed).name == "centred mean of 21 tasks"


def test_find_missing_core_tasks_takes_either_form_of_a_task():
    forms = [(task.names[-1], task.shots) for task in CORE]
    assert find_missing_core_tasks(forms) == []
    assert [task.names[0] for task in find_missing_core_tasks([f for f in forms if f[0] != "jeopardy"])] == ["jeopardy"]


def test_the_tasks_of_core_have_the_harness_s_names():
    root = Path(pytest.importorskip("lm_eval").__path__[0], "tasks")
    folders = (
        "agieval arc bigbench super_glue commonsense_qa coqa hellaswag lambada openbookqa piqa squad_completion "
        "squadv2 wsc273 winogrande"
    )
    names = set()
    for folder in folders.split():
        for path in (root / folder).rglob("*.yaml"):
            names.update(re.findall(r"^task: *(\S+)$", path.read_text(encoding="utf-8"), re.MULTILINE))
    assert {name for task in CORE for name in task.names} - names == {"jeopardy"}

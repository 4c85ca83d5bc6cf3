"""Bounds on the scores of an evaluation: read, checked, met and missed; nothing is measured here."""

import json
import math

import pytest

from hf_llm.core.errors import UserError
from hf_llm.evaluation.gates import (
    MISSION,
    check_gates,
    check_run_gates,
    enforce_gates,
    find_gate_problems,
    list_benchmark_names,
    parse_gates,
    read_run_measurements,
)
from hf_llm.evaluation.metrics import METRICS
from hf_llm.evaluation.text_metrics.held_out_answers import NAME
from hf_llm.pipeline.status import read_status
from tests.tiny_recipe import ROOT


def score(metric, value, documents=100, is_primary=False):
    return {"metric": metric, "value": value, "documents": documents, "is_primary": is_primary}


RESULTS = {
    "models": {
        "base": {"perplexity": 12.0, "answered_right": 0.2, "benchmarks": {}},
        "dpo": {
            "perplexity": 25.31,
            "answered_right": 0.81,
            "ms_per_token": 40,
            "benchmarks": {
                "hellaswag": {"scores": [score("acc", 0.28), score("acc_norm", 0.31, is_primary=True)], "group": ""},
                "mmlu_law": {"scores": [score("acc", 0.2, 300, True)], "group": "mmlu"},
                "mmlu_art": {"scores": [score("acc", 0.4, 100, True)], "group": "mmlu"},
                "gsm8k (plain)": {"scores": [score("exact_match", 0.1, is_primary=True)], "group": ""},
                "gsm8k (chat)": {"scores": [score("exact_match", 0.3, is_primary=True)], "group": ""},
                "held out": {"scores": [score("bleu", 31.0, is_primary=True), score("rougeL", 0.4)], "group": ""},
                "letters": {"scores": [score("bleu", 12.5, is_primary=True)], "group": ""},
                "humaneval": {"scores": [score("pass@1", 0.05, is_primary=True)], "group": ""},
                "piqa": {"scores": [], "not_run": "its file is not there", "group": ""},
            },
        },
    }
}


def outcome(key, bound, **measured):
    (result,) = check_gates(RESULTS, {key: bound}, measured)
    return result


@pytest.mark.parametrize(
    ("key", "bound", "state"),
    [
        ("perplexity", "< 20", "missed"),  # of the last model
        ("base.perplexity", "< 20", "met"),
        ("base.perplexity", "<= 12", "met"),
        ("base.perplexity", "< 12", "missed"),
        ("answered_right", "> 80%", "met"),
        ("answered_right", ">= 0.81", "met"),
        ("base.answered_right", ">0.8", "missed"),
        ("hellaswag", "> 0.3", "met"),  # its primary score
        ("hellaswag.acc", "> 0.3", "missed"),
        ("dpo.hellaswag.acc", "> 0.2", "met"),
        ("mmlu", "> 0.24", "met"),  # 0.25 by documents
        ("mmlu", "> 0.26", "missed"),
        ("mmlu.acc", "> 0.24", "met"),
        ("mmlu_art", "> 0.39", "met"),
        ("gsm8k", "> 0.2", "missed"),  # one of two prompt formats
        ("gsm8k (chat)", "> 0.2", "met"),
        ("gsm8k.exact_match", "> 0.05", "met"),
        ("bleu", "> 30", "missed"),  # one of two sets of texts
        ("bleu", "< 40", "met"),
        ("bleu", "< 30", "missed"),
        ("held out.bleu", "> 30", "met"),
        ("humaneval.pass@1", "> 1%", "met"),
        ("hellaswag.f1", "> 0.3", "not measured"),
        ("base.hellaswag", "> 0.3", "not measured"),
        ("stop_rate", "> 0.9", "not measured"),
        ("uptime", "> 99.9%", "not measured"),
    ],
)
def test_check_gates_reads_the_value_that_a_key_means(key, bound, state):
    assert outcome(key, bound).state == state


def test_an_outcome_says_what_was_measured_and_of_what():
    assert outcome("perplexity", "< 20").describe() == "missed: perplexity of dpo is 25.31, bound < 20"
    assert outcome("bleu", "> 30").describe() == "missed: bleu of dpo (letters) is 12.5, bound > 30"
    assert (
        outcome("base.answered_right", "> 80%").describe() == "missed: base.answered_right of base is 20%, bound > 80%"
    )
    assert outcome("mmlu", "> 0.3").subject == "dpo (mean of 2 tasks)"
    assert outcome("piqa", "> 0.5").reason == "its file is not there"


def test_what_was_not_measured_fails_and_not_a_number_too():
    assert check_gates({}, {"perplexity": "< 20"})[0].reason == "no model was evaluated"
    results = {"models": {"base": {"perplexity": math.nan}}}
    for bound in ("< 20", "> 20"):
        assert check_gates(results, {"perplexity": bound})[0].state == "missed"


def test_the_mission_holds_all_its_figures_and_a_recipe_states_what_it_lacks():
    alone = {each.key: each for each in check_gates(RESULTS, "mission")}
    assert list(alone) == [figure.metric for figure in MISSION]
    assert alone["ms_per_token"].state == "met"
    assert alone["training_cost"].state == "not measured"
    assert "no target is stated" in alone["training_cost"].reason
    assert all(each.reason for each in alone.values() if each.state == "not measured")

    stated = {"mission": True, "training_cost": "< 100", "perplexity": "< 30"}
    both = {each.key: each for each in check_gates(RESULTS, stated, {"training_cost": 99.0})}
    assert both["training_cost"].state == "met"
    assert (both["perplexity"].state, both["perplexity"].bound) == ("met", "< 30")
    assert len(both) == len(MISSION)


def test_every_figure_of_the_mission_says_where_it_is_measured_and_what_it_means():
    for figure in MISSION:
        assert figure.measured and figure.meaning.endswith(".")
        assert not find_gate_problems(tree({figure.metric: figure.bound or "< 1"}))


def test_the_page_of_the_evaluation_has_the_mission_s_figures():
    page = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    for figure in MISSION:
        bound = f"`{figure.bound}`" if figure.bound else "yours"
        assert f"| `{figure.metric}` | {bound} | {figure.measured} | {figure.meaning} |" in page


def test_gates_may_stand_below_their_model():
    nested = {each.key: each.state for each in check_gates(RESULTS, {"base": {"perplexity": "< 20"}, "mmlu": "> 0.9"})}
    assert nested == {"base.perplexity": "met", "mmlu": "missed"}
    assert find_gate_problems(tree({"dpo": {"perplexity": "< 20"}})) == []


def tree(gates, **section):
    return {"name": "x", "sft": {"data": []}, "dpo": {"data": []}, "evaluate": {"gates": gates, **section}}


@pytest.mark.parametrize(
    ("key", "bound", "words"),
    [
        ("perplexty", "< 20", "did you mean perplexity?"),
        ("dpo.perplexty", "< 20", "did you mean dpo.perplexity?"),
        ("helaswag", "> 0.3", "did you mean hellaswag?"),
        ("kto.perplexity", "< 20", "no such metric"),  # this run has no kto
        ("perplexity", "20", "cannot read '20' as a bound"),
        ("perplexity", 20, "cannot read 20 as a bound"),
        ("perplexity", "about 20", "write one in quotes"),
        ("perplexity", None, "cannot read None"),
        ("bleu", "> 0.3", "bleu is from 0 to 100 here; write > 30"),
        ("bleu", "> 30%", "write > 30"),
        ("answered_right", "> 80", "write > 80%"),
        ("hellaswag.acc_norm", "> 30", "write > 30%"),
        ("visions", True, "no set of gates called 'visions'"),
    ],
)
def test_find_gate_problems_names_the_key_and_the_remedy(key, bound, words):
    (problem,) = find_gate_problems(tree({key: bound}, tasks=["hellaswag", {"name": "mmlu", "shots": 5}]))
    assert problem.startswith("evaluate.gates") and key in problem
    assert words in problem


def test_find_gate_problems_accepts_what_may_be_measured():
    keys = [
        "hellaswag",
        "dpo.hellaswag.acc_norm",
        "mmlu",
        "mmlu_law.acc",
        "mmlu (chat)",
        "base.bits_per_byte",
        "letters.bleu",
    ]
    gates = dict.fromkeys(keys, "> 0.3") | {"letters.bleu": "> 3"}
    section = {"tasks": ["hellaswag", {"name": "mmlu"}], "references": [{"path": "texts/letters.jsonl"}]}
    assert find_gate_problems(tree(gates, **section)) == []
    assert find_gate_problems(tree({"anything": "> 0.3"}, tasks=["my/task.yaml"])) == []  # it has a name of its own
    assert find_gate_problems(tree({"other.perplexity": "< 3"}, models=["runs/other"])) == []
    assert list_benchmark_names(tree({}, **section)) == [NAME, "hellaswag", "mmlu", "letters"]
    assert find_gate_problems(tree({f"{NAME}.rougeL": "> 0.2"})) == []


@pytest.mark.parametrize("gates", [None, {}, ""])
def test_no_gates_are_no_problem(gates, tmp_path):
    assert find_gate_problems(tree(gates)) == []
    assert parse_gates(gates) == []
    enforce_gates(tmp_path, tree(gates))
    assert list(tmp_path.iterdir()) == []


def test_every_score_of_the_evaluation_can_be_a_gate():
    for metric in METRICS.values():
        if "scores" in metric.views:
            assert find_gate_problems(tree({metric.key: "> 0.5"})) == []


def write_run(root, results=RESULTS):
    (root / "evaluation").mkdir(parents=True)
    (root / "evaluation/results.json").write_text(json.dumps(results))


def test_enforce_gates_ends_with_3_and_a_status_until_they_are_met(tmp_path, capsys):
    write_run(tmp_path)
    for _ in range(2):  # on every rerun
        with pytest.raises(SystemExit) as stopped:
            enforce_gates(tmp_path, tree({"perplexity": "< 20", "base.perplexity": "< 20", "uptime": "> 99.9%"}))
        assert stopped.value.code == 3
    printed = capsys.readouterr().out
    assert "Gates: 1 of 3 are met" in printed
    assert "missed: perplexity of dpo is 25.31, bound < 20" in printed
    status = read_status(tmp_path)
    assert (status["status"], status["exit_code"]) == ("gates missed", 3)
    assert [line.split(":")[0] for line in status["missed"]] == ["missed", "not measured"]

    enforce_gates(tmp_path, tree({"perplexity": "< 30"}))
    assert read_status(tmp_path)["status"] == "finished"
    enforce_gates(tmp_path, tree(None))
    assert read_status(tmp_path) == {}


def test_enforce_gates_refuses_an_unknown_metric(tmp_path):
    write_run(tmp_path)
    with pytest.raises(UserError, match="did you mean perplexity"):
        enforce_gates(tmp_path, tree({"perplexty": "< 20"}))


def test_the_cost_of_training_is_that_of_all_stages_or_not_known(tmp_path):
    def write_log(stage, *costs):
        (tmp_path / stage).mkdir()
        history = [{"step": n, "cost": cost} for n, cost in enumerate(costs)] + [{"step": 9, "eval_loss": 1.0}]
        (tmp_path / stage / "trainer_state.json").write_text(json.dumps({"log_history": history}))

    assert read_run_measurements(tmp_path) == {}
    write_log("base", 1.5, 3.0)
    write_log("sft", 0.25)
    assert read_run_measurements(tmp_path) == {"training_cost": 3.25}
    assert check_run_gates(tmp_path, tree({"training_cost": "< 4"}))[0].state == "met"
    write_log("dpo")
    assert read_run_measurements(tmp_path) == {}

"""CrowS-Pairs and WinoBias: which files they read, their figures by hand, and that training on one side moves them."""

import csv
import json
import math
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM

from hf_llm.core.errors import UserError
from hf_llm.evaluation.benchmark import NotRunError, TaskSettings
from hf_llm.evaluation.benchmark_families import find_benchmarks
from hf_llm.evaluation.bias import crows_pairs, winobias
from hf_llm.evaluation.bias.winobias import clean, differ_in_pronouns
from hf_llm.evaluation.evaluated_model import EvaluatedModel
from hf_llm.evaluation.journal import Journal
from tests.evaluation.evaluated import by_metric, run, save_model
from tests.tiny_models import tiny_tokenizer

DATA = os.environ.get("HF_LLM_DATA", "")
needs_data = pytest.mark.skipif(not DATA, reason="HF_LLM_DATA is not set")
TRADES = ["bakers", "smiths", "weavers", "millers", "tailors", "carters"]


def write_pairs(folder: Path, columns=("sent_more", "sent_less", "bias_type")) -> Path:
    """Made-up pairs about people of the hills and of the vales, as long as each other, of two kinds."""
    path = folder / "crows_pairs" / "pairs.csv"
    path.parent.mkdir(parents=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for number in range(12):
            trade = TRADES[number % 6]
            verb = "cheat" if number < 6 else "sleep"
            writer.writerow(
                [
                    f"The hill {trade} always {verb}.",
                    f"The vale {trade} always {verb}.",
                    "trade" if number < 6 else "age",
                ]
            )
    return path


def find_one(task: TaskSettings, task_data: Path | None = None):
    (benchmark,) = find_benchmarks(task, task_data, runs_code=False, is_chat=True)
    return benchmark


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def crows(tmp_path):
    write_pairs(tmp_path)
    return find_one(TaskSettings("crows_pairs"), tmp_path)


def row(preference: float, gap: float, group: str, by_length: float = 0.5) -> dict:
    scores = {"stereotype_share": preference, "log_likelihood_gap": gap, "likelihood_diff": abs(gap)}
    return {"scores": scores, "group": group, "is_cut": False, "by_length": by_length}


def test_the_figures_of_all_pairs_and_of_each_kind(crows):
    rows = [row(1, 2.0, "age"), row(1, 1.0, "age"), row(0, -4.0, "trade"), row(0.5, 0.0, "trade")]
    scores = by_metric(crows.summarize(rows))
    assert scores["stereotype_share"].value == 2.5 / 4
    assert scores["stereotype_share/age"].value == 1 and scores["stereotype_share/age"].documents == 2
    assert scores["stereotype_share/trade"].value == 0.25
    assert scores["log_likelihood_gap"].value == -0.25
    assert scores["log_likelihood_gap/trade"].value == -2
    assert scores["likelihood_diff"].value == 7 / 4
    share = scores["stereotype_share"]
    assert share.chance == 0.5 and share.better is None and share.majority == 0.5
    assert share.is_at_chance  # four pairs tell no preference from none
    assert not by_metric(crows.summarize([row(1, 1.0, "age")] * 40))["stereotype_share"].is_at_chance


def test_a_share_that_length_alone_gives_is_no_preference(crows):
    rows = [row(float(number < 30), 1.0, "age", by_length=float(number < 28)) for number in range(40)]
    scores = by_metric(crows.summarize(rows))
    assert scores["by_length_share"].value == 28 / 40
    assert scores["stereotype_share"].low > 0.5 and scores["stereotype_share"].is_at_chance


def test_the_arithmetic_is_that_of_the_harness(crows, model, tmp_path):
    harness = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    utils = pytest.importorskip("lm_eval.tasks.crows_pairs.utils")
    rows = run(crows, model, tmp_path / "journal")

    stock = harness.HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=4)
    results = []
    for pair in crows.pairs:
        doc = {"sent_more": pair.stereotyping, "sent_less": pair.other}
        choices = utils.doc_to_choice(doc)
        requests = [instance("loglikelihood", doc, ("", choice), place) for place, choice in enumerate(choices)]
        results.append(utils.process_results(doc, stock.loglikelihood(requests, disable_tqdm=True)))
    scores = by_metric(crows.summarize(rows))
    assert [row["scores"]["stereotype_share"] for row in rows] == [each["pct_stereotype"] for each in results]
    expected = sum(each["likelihood_diff"] for each in results) / len(results)
    assert scores["likelihood_diff"].value == pytest.approx(expected, abs=1e-4)


def test_a_model_trained_on_one_side_prefers_it(crows, tmp_path):
    shares = {}
    for side in ("stereotyping", "other"):
        trained = save_model(tmp_path / side, [getattr(pair, side) for pair in crows.pairs])
        scores = by_metric(crows.summarize(run(crows, trained, tmp_path / f"{side}-journal")))
        shares[side] = scores["stereotype_share"].value
        assert not scores["stereotype_share"].is_at_chance
        assert (scores["log_likelihood_gap"].value > 0) is (side == "stereotyping")
    assert shares["stereotyping"] > 0.9
    assert shares["other"] < 0.1


def test_a_killed_run_resumes_and_two_processes_score_the_same(crows, model, tmp_path):
    alone = run(crows, model, tmp_path / "alone")
    assert len(alone) == 12
    Journal(tmp_path / "killed").append(alone[3:8])
    assert_same(run(crows, model, tmp_path / "killed"), alone)
    assert_same(run(crows, model, tmp_path / "two", world_size=2), alone)


def assert_same(rows, expected):
    assert [row["id"] for row in rows] == [row["id"] for row in expected]
    for one, other in zip(rows, expected, strict=True):
        assert one["log_likelihoods"] == pytest.approx(other["log_likelihoods"], abs=1e-4)
        assert one["scores"]["stereotype_share"] == other["scores"]["stereotype_share"]


def test_a_masked_model_is_scored_by_what_the_sentences_share(crows, tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=320, max_position_embeddings=64, pad_token_id=256, initializer_range=0.5, **sizes)
    BertForMaskedLM(config).save_pretrained(tmp_path / "bert")
    tokenizer.save_pretrained(tmp_path / "bert")
    rows = run(crows, EvaluatedModel("bert", tmp_path / "bert"), tmp_path / "journal")
    scores = by_metric(crows.summarize(rows))
    assert scores["stereotype_share"].documents == 12
    # Log-likelihoods of as many tokens, of which each is about as likely as any other of the vocabulary.
    shared = len("The  bakers always cheat.")
    first = rows[0]["log_likelihoods"]
    assert all(-20 * shared < score < -shared for score in first) and first[0] != first[1]


def test_sentences_longer_than_the_context_are_said(tmp_path):
    path = write_pairs(tmp_path)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("The hill bakers always cheat", "The hill bakers always cheat" + " so" * 100), "utf-8")
    benchmark = find_one(TaskSettings("crows_pairs"), tmp_path)
    rows = run(benchmark, save_model(tmp_path / "tiny"), tmp_path / "journal")
    assert by_metric(benchmark.summarize(rows))["cut_pairs"].value == pytest.approx(1 / 12)


@pytest.mark.parametrize("columns", [("sent_more", "less", "bias_type"), ("a", "b", "c")])
def test_a_missing_column_is_named(tmp_path, columns):
    write_pairs(tmp_path, columns)
    with pytest.raises(NotRunError, match=f"no column .*'sent_less'; it has {', '.join(columns)}"):
        find_one(TaskSettings("crows_pairs"), tmp_path)


def test_pairs_that_lack_a_sentence_are_counted(tmp_path):
    path = write_pairs(tmp_path)
    with open(path, "a", encoding="utf-8") as file:
        file.write("Only one.,,age\n")
    benchmark = find_one(TaskSettings("crows_pairs"), tmp_path)
    assert len(benchmark.pairs) == 12
    assert benchmark.settings["dropped"] == {"a sentence is missing": 1}


def test_what_the_pairs_have_no_use_for_is_refused(tmp_path):
    path = write_pairs(tmp_path)
    for keys in ({"shots": 5}, {"samples": 3}, {"gen_kwargs": {"temperature": 1}}, {"classifier": "x"}):
        with pytest.raises(UserError, match=next(iter(keys))):
            find_one(TaskSettings("crows_pairs", data=str(path), **keys))
    with pytest.raises(UserError, match=r"data: .*gone\.csv does not exist"):
        find_one(TaskSettings("crows_pairs", data=str(tmp_path / "gone.csv")))


def test_rows_that_are_nowhere_are_not_run(tmp_path, monkeypatch):
    nowhere = "nobody/has-no-such-data-set"  # on the Hub either
    monkeypatch.setattr(crows_pairs, "SOURCE", replace(crows_pairs.SOURCE, hub=nowhere))
    monkeypatch.setattr(winobias, "HUB", nowhere)
    for name in ("crows_pairs", "winobias"):
        with pytest.raises(NotRunError, match=f"{name} needs .*evaluate.task_data"):
            find_one(TaskSettings(name), tmp_path)


def test_pairs_are_identified_by_what_they_say(tmp_path):
    path = write_pairs(tmp_path)
    before = find_one(TaskSettings("crows_pairs", data=str(path))).identify()
    moved = path.rename(tmp_path / "elsewhere.csv")
    assert find_one(TaskSettings("crows_pairs", data=str(moved))).identify() == before
    moved.write_text(moved.read_text(encoding="utf-8").replace("hill", "isle"), encoding="utf-8")
    assert find_one(TaskSettings("crows_pairs", data=str(moved))).identify() != before
    assert find_one(TaskSettings("crows_pairs", data=str(moved), limit=3)).identify() != before


# WinoBias


def write_winobias(folder: Path, count: int = 8) -> Path:
    folder = folder / "winobias"
    folder.mkdir()
    for kind in ("type1", "type2"):
        for side, pronouns in (("pro", ("he", "she")), ("anti", ("she", "he"))):
            lines = []
            for number in range(count):
                pronoun = pronouns[number % 2]
                trade = TRADES[number % 6]
                lines.append(f"{number + 1} [The {trade}] met the clerk and [{pronoun}] said so in {kind} .")
            (folder / f"{side}_stereotyped_{kind}.txt.dev").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def test_winobias_pairs_the_files_line_by_line(tmp_path):
    write_winobias(tmp_path)
    benchmark = find_one(TaskSettings("winobias"), tmp_path)
    assert len(benchmark.pairs) == 16
    first = benchmark.pairs[0]
    assert first.stereotyping == "The bakers met the clerk and he said so in type1."
    assert first.other == "The bakers met the clerk and she said so in type1."
    limited = find_one(TaskSettings("winobias", limit=5), tmp_path)
    assert [pair.group for pair in limited.pairs] == ["type1"] * 3 + ["type2"] * 2


def test_winobias_moves_with_one_sided_training(tmp_path):
    write_winobias(tmp_path, 4)
    benchmark = find_one(TaskSettings("winobias"), tmp_path)
    for side, is_above in (("stereotyping", True), ("other", False)):
        trained = save_model(tmp_path / side, [getattr(pair, side) for pair in benchmark.pairs], steps=120)
        scores = by_metric(benchmark.summarize(run(benchmark, trained, tmp_path / f"{side}-journal")))
        share = scores["stereotype_share"].value
        assert share > 0.7 if is_above else share < 0.3
        assert (scores["log_likelihood_gap"].value > 0) is is_above
        assert {"stereotype_share/type1", "stereotype_share/type2"} <= scores.keys()


def test_sentences_that_are_no_pair_are_counted_or_named(tmp_path):
    folder = write_winobias(tmp_path)
    path = folder / "pro_stereotyped_type1.txt.dev"
    path.write_text(path.read_text(encoding="utf-8").replace("met", "saw", 1), encoding="utf-8")
    benchmark = find_one(TaskSettings("winobias"), tmp_path)
    assert len(benchmark.pairs) == 15
    assert benchmark.settings["dropped"] == {winobias.NOT_A_PAIR: 1}
    (folder / "anti_stereotyped_type1.txt.dev").unlink()
    with pytest.raises(NotRunError, match=r"pro_stereotyped_type1.txt.dev has no file anti_stereotyped"):
        find_one(TaskSettings("winobias"), tmp_path)


def test_brackets_and_spaces_before_marks_are_taken_out():
    assert clean("[The clerk] did n't ask , and [she] left .") == "The clerk didn't ask, and she left."
    assert differ_in_pronouns("He took [his] hat.", "she took her hat.")
    for other in ("a boss", "he took a hat.", "she took his cap."):
        assert not differ_in_pronouns("he took his hat.", other)


@needs_data
def test_the_real_sets_are_read_whole(tmp_path):
    crows = find_one(TaskSettings("crows_pairs"), Path(DATA))
    assert len(crows.pairs) == 500 and "dropped" not in crows.settings
    assert len({pair.group for pair in crows.pairs}) == 9
    sentences = find_one(TaskSettings("winobias"), Path(DATA))
    dropped = sentences.settings["dropped"][winobias.NOT_A_PAIR]  # the authors' slips, such as "to won"
    assert len(sentences.pairs) + dropped == 792 and 0 < dropped < 20
    assert {pair.group for pair in sentences.pairs} == {"type1", "type2"}


@needs_data
def test_a_model_of_random_weights_has_no_preference_that_can_be_told(model, tmp_path):
    benchmark = find_one(TaskSettings("crows_pairs", limit=120), Path(DATA))  # at 0.5, or where length puts it
    scores = by_metric(benchmark.summarize(run(benchmark, model, tmp_path)))
    assert scores["stereotype_share"].is_at_chance
    assert sum(score.documents for name, score in scores.items() if name.startswith("stereotype_share/")) == 120
    assert all(math.isfinite(score.value) for score in scores.values())
    assert json.loads(json.dumps([score.to_json() for score in scores.values()]))

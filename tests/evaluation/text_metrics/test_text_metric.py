"""BLEU, ROUGE and chrF: published scores, scores by hand, and intervals from statistics instead of texts."""

import csv
import json
import os
import random
from pathlib import Path

import evaluate
import numpy as np
import pytest

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF

from hf_llm.evaluation.text_metrics.bleu import MIXED_REFERENCES, Bleu
from hf_llm.evaluation.text_metrics.chrf import Chrf
from hf_llm.evaluation.text_metrics.rouge import Rouge, has_other_letters

DATA = os.environ.get("HF_LLM_DATA", "")
needs_data = pytest.mark.skipif(not DATA, reason="HF_LLM_DATA is not set")
WORDS = ["the", "a", "cat", "dog", "sat", "lay", "on", "under", "mat", "rug", "and", "then", "it", "was", "red"]


@pytest.fixture(scope="module")
def corpus():
    """Forty made-up predictions with two references each, which share some of their words."""
    draw = random.Random(0)
    predictions = []
    references = []
    for _ in range(40):
        words = draw.choices(WORDS, k=draw.randint(3, 12))
        predictions.append(" ".join(words))
        variants = []
        for _ in range(2):
            kept = [word if draw.random() < 0.7 else draw.choice(WORDS) for word in words]
            variants.append(" ".join(kept[: draw.randint(2, len(kept))]))
        references.append(variants)
    return predictions, references


def transpose(references):
    """References as sacrebleu wants them: all first ones, then all second ones."""
    return [list(each) for each in zip(*references, strict=True)]


def read_expected(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_bleu_of_a_sentence_is_the_mean_of_its_four_precisions():
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples and, smoothed, half a match of 3 fours; the lengths are equal.
    expected = 100 * (5 / 6 * 3 / 5 * 1 / 4 * 1 / 6) ** 0.25
    computed = Bleu().compute(predictions=["the cat sat on the mat"], references=["the cat is on the mat"])
    assert computed["bleu"] == pytest.approx(expected)


def test_rouge_of_a_sentence_is_the_f_score_of_what_is_shared():
    computed = Rouge().compute(predictions=["a b c d"], references=["a c b"])
    assert computed["rouge1"] == pytest.approx(2 * 3 / 7)  # 3 of 4 words and 3 of 3
    assert computed["rouge2"] == 0
    assert computed["rougeL"] == pytest.approx(2 * 2 / 7)  # `a b` or `a c`


def test_lines_are_the_sentences_of_rougelsum():
    apart = Rouge().compute(predictions=["a b\nc d"], references=["c d\na b"])
    assert apart["rougeLsum"] == 1
    assert apart["rougeL"] == 0.5


def test_chrf_of_equal_texts_is_100_and_of_disjoint_ones_0():
    chrf = Chrf()
    assert chrf.compute(predictions=["ein Wort"], references=["ein Wort"])["chrf"] == 100
    assert chrf.compute(predictions=["ein Wort"], references=["xyz"])["chrf"] == 0


def test_a_corpus_has_the_scores_of_the_libraries(corpus):
    predictions, references = corpus
    assert Bleu().compute(predictions=predictions, references=references)["bleu"] == pytest.approx(
        BLEU().corpus_score(predictions, transpose(references)).score
    )
    assert Chrf().compute(predictions=predictions, references=references)["chrf"] == pytest.approx(
        CHRF().corpus_score(predictions, transpose(references)).score
    )
    scorer = RougeScorer(["rougeL"])
    best = [max(scorer.score(text, p)["rougeL"].fmeasure for text in r) for p, r in zip(*corpus, strict=True)]
    assert Rouge().compute(predictions=predictions, references=references)["rougeL"] == pytest.approx(np.mean(best))


@pytest.mark.parametrize("metric", [Bleu(), Chrf(), Rouge()], ids=["bleu", "chrf", "rouge"])
def test_a_resample_of_the_statistics_has_the_score_of_the_resampled_texts(metric, corpus):
    predictions, references = corpus
    table = np.array([metric.measure(p, r) for p, r in zip(predictions, references, strict=True)])
    draws = np.random.default_rng(1).multinomial(len(table), np.full(len(table), 1 / len(table)), size=5)
    for draw in draws:
        chosen = np.repeat(np.arange(len(table)), draw)
        again = metric.compute(
            predictions=[predictions[place] for place in chosen], references=[references[place] for place in chosen]
        )
        expected = [again[name] for name in metric.names]
        assert metric.combine(draw @ table, len(table)) == pytest.approx(expected)


def test_the_interval_is_about_the_spread_over_samples_of_that_size():
    draw = random.Random(3)
    documents = []
    for _ in range(2000):
        words = draw.choices(WORDS, k=10)
        documents.append((" ".join(words), " ".join(w if draw.random() < 0.6 else "x" for w in words)))
    bleu = Bleu()
    table = [bleu.measure(prediction, [reference]) for prediction, reference in documents]
    values = [bleu.score_corpus(table[start : start + 100])[0].value for start in range(0, 2000, 100)]
    score = bleu.score_corpus(table[:100])[0]
    assert score.low < score.value < score.high
    assert (score.high - score.low) / (2 * 1.96) == pytest.approx(np.std(values), rel=0.6)


def test_texts_can_be_added_in_batches_and_nothing_is_written(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "cache")
    monkeypatch.chdir(tmp_path)
    predictions, references = corpus
    metric = Bleu()
    assert isinstance(metric, evaluate.Metric)
    for _ in range(2):  # a metric can be used again
        metric.add_batch(predictions=predictions[:10], references=references[:10])
        metric.add_batch(predictions=predictions[10:], references=references[10:])
        assert metric.compute() == Bleu().compute(predictions=predictions, references=references)
    assert list(tmp_path.rglob("*")) == []
    with pytest.raises(ValueError, match="distributed"):
        Bleu(num_process=2)


def test_the_signature_says_how_bleu_was_measured():
    assert Bleu().format_signature(1).startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert Bleu("zh").format_signature(MIXED_REFERENCES).startswith("nrefs:var|case:mixed|eff:no|tok:zh|")


def test_letters_that_rouge_does_not_know_are_seen():
    assert has_other_letters("schöne Tage") and has_other_letters("你好")
    assert not has_other_letters("fine days, 100 € – “yes”")


@needs_data
def test_bleu_equals_the_published_scores_of_wmt17():
    folder = Path(DATA) / "bleu_wmt17"
    references = (folder / "reference.de").read_text(encoding="utf-8").splitlines()
    expected = read_expected(folder / "expected_bleu.tsv")
    assert len(expected) == 3
    for row in expected:
        predictions = (folder / f"{row['system']}.txt").read_text(encoding="utf-8").splitlines()
        computed = Bleu().compute(predictions=predictions, references=references)
        assert round(computed["bleu"], 2) == float(row["BLEU_13a"]), row["system"]


@needs_data
def test_rouge_equals_that_of_rouge_score():
    folder = Path(DATA) / "rouge"
    pairs = json.loads((folder / "pltrdy_data.json").read_text(encoding="utf-8"))
    expected = read_expected(folder / "expected_rouge_score_0.1.2.tsv")
    rouge = Rouge()
    for pair, row in zip(pairs, expected, strict=True):
        scores = dict(zip(rouge.names, rouge.measure(pair["hyp"], [pair["ref"]]), strict=True))
        for name in ("rouge1", "rouge2", "rougeL"):
            assert round(scores[name], 6) == float(row[f"{name}_f"])


@needs_data
def test_of_several_references_the_best_counts():
    cases = json.loads((Path(DATA) / "rouge" / "ROUGE-test.json").read_text(encoding="utf-8"))
    rouge = Rouge()
    scorer = RougeScorer(list(rouge.names))
    for case in cases.values():
        for summary in case["summaries"]:
            alone = [scorer.score(reference, summary) for reference in case["references"]]
            best = [max(score[name].fmeasure for score in alone) for name in rouge.names]
            assert rouge.measure(summary, case["references"]) == pytest.approx(best)

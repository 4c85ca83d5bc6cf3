from itertools import pairwise

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from hf_llm.core.errors import UserError
from hf_llm.data.tokens.curriculum import Curriculum, MixStage
from hf_llm.data.tokens.mixing import (
    StreamRouter,
    check_shares,
    format_mix,
    list_train_sources,
    measure_stage_bounds,
    plan_mix,
    plan_stage_streams,
    plan_stages,
    plan_streams,
    sample_evenly,
    score_documents,
)
from hf_llm.data.tokens.token_shards import Documents, Tokens


def planned(*arguments):
    return {row["source"]: row["planned"] for row in plan_mix(*arguments)}


def tokens_of(*documents):
    """Documents as lists of ids, an end of text (0) after each."""
    ids = [np.array([*document, 0], np.uint16) for document in documents]
    return Tokens(np.concatenate(ids), np.array([len(part) for part in ids]))


def test_shares_are_normalised_and_fill_the_budget():
    available = {"web": 1000, "books": 500}
    assert planned(available, {"web": 3, "books": 1}, 4.0, 400) == {"web": 300, "books": 100}
    rows = plan_mix(available, {"web": 3, "books": 1}, 4.0, 400)
    assert [row["asked"] for row in rows] == [0.75, 0.25] and [row["epochs"] for row in rows] == [0.3, 0.2]


def test_without_a_budget_training_sees_as_many_tokens_as_there_are():
    assert planned({"web": 1000, "books": 500}, {"web": 1, "books": 1}, 4.0, None) == {"web": 750, "books": 750}


def test_a_small_source_is_repeated_up_to_the_cap_and_the_others_get_the_rest_in_proportion():
    available = {"web": 1000, "code": 1000, "chat": 10}
    rows = {row["source"]: row for row in plan_mix(available, {"web": 4, "code": 2, "chat": 4}, 3.0, 930)}
    assert rows["chat"]["planned"] == 30 and rows["chat"]["epochs"] == 3.0
    assert (rows["web"]["planned"], rows["code"]["planned"]) == (600, 300)
    assert sum(row["share"] for row in rows.values()) == pytest.approx(1)


def test_one_cap_may_bring_another():
    available = {"a": 10, "b": 120, "c": 1000}
    assert planned(available, {"a": 1, "b": 1, "c": 1}, 1.0, 350) == {"a": 10, "b": 120, "c": 220}


def test_no_source_is_ever_taken_more_often_than_the_cap():
    rng = np.random.default_rng(0)
    for _ in range(300):
        names = [f"s{i}" for i in range(rng.integers(1, 7))]
        available = {name: int(rng.integers(1, 10_000)) for name in names}
        shares = {name: float(rng.uniform(0.01, 1)) for name in names}
        cap, budget = float(rng.uniform(1, 5)), int(rng.integers(1, 50_000))
        rows = plan_mix(available, shares, cap, budget)
        assert all(row["planned"] <= row["tokens"] * cap + 1 for row in rows)
        most = sum(int(tokens * cap) for tokens in available.values())
        assert abs(sum(row["planned"] for row in rows) - min(budget, most)) <= len(names)
        free = [row for row in rows if row["planned"] < int(row["tokens"] * cap) - 1]
        ratios = [row["planned"] / row["asked"] for row in free if row["planned"] > 500]
        assert not ratios or max(ratios) / min(ratios) < 1.01


def test_a_budget_beyond_the_caps_takes_everything_that_may_be_taken():
    assert planned({"web": 100, "books": 10}, {"web": 1, "books": 1}, 2.0, 10**6) == {"web": 200, "books": 20}


def test_without_shares_every_source_keeps_its_own():
    assert planned({"web": 900, "books": 100}, None, 4.0, 500) == {"web": 450, "books": 50}


def test_the_table_shows_what_was_asked_and_what_is_got():
    table = format_mix(plan_mix({"web": 1000, "chat": 10}, {"web": 1, "chat": 1}, 4.0, None), 4.0)
    assert "50.0%" in table and "96.0%" in table and "4.00" in table
    assert "reachable up to corpus.max_tokens=80" in table
    exact = format_mix(plan_mix({"web": 1000, "chat": 10}, {"web": 1, "chat": 1}, 4.0, 80), 4.0)
    assert "reachable up to" not in exact and "in all 80 tokens" in exact


def test_shares_and_sources_that_differ_are_an_error_with_both_lists():
    with pytest.raises(UserError, match=r"(?s)shares:  books, web\n  sources: chat, web"):
        check_shares({"web": 1, "books": 2}, ["web", "chat"])
    with pytest.raises(UserError, match="books: 0; a share has to be positive"):
        check_shares({"web": 1, "books": 0}, ["web", "books"])
    check_shares({"web": 1, "books": 2}, ["web", "books"])


def test_the_sources_of_a_corpus(tmp_path):
    for number, names in enumerate((["web", "books"], ["chat", "web"], [])):
        table = pyarrow.table({"source": pyarrow.array(names, pyarrow.string())})
        pyarrow.parquet.write_table(table, tmp_path / f"{number}.parquet")
    assert list_train_sources(sorted(tmp_path.iterdir())) == ["books", "chat", "web"]


def test_streams_by_source_and_stage():
    documents = Documents.from_texts(["a"] * 3)
    documents.sources = ["web", "books", "web"]
    tokens = tokens_of([5], [5, 5, 5, 5], [5, 5, 5, 5])
    assert StreamRouter(["web", "books"]).route_documents(documents, tokens).tolist() == [0, 1, 0]
    by_source = StreamRouter(["web", "books"], Curriculum("source"))
    assert by_source.labels == [{"stage": 0, "source": "web"}, {"stage": 1, "source": "books"}]
    both = StreamRouter(["web", "books"], Curriculum("length", 2), np.array([3]))
    assert [both.labels[place] for place in both.route_documents(documents, tokens)] == [
        {"stage": 0, "source": "web"},
        {"stage": 1, "source": "books"},
        {"stage": 1, "source": "web"},
    ]


def test_stages_by_length_hold_equal_numbers_of_tokens():
    rng = np.random.default_rng(1)
    tokens = tokens_of(*([7] * int(n) for n in rng.integers(1, 400, 2000)))
    curriculum = Curriculum("length", 4)
    bounds, costs = measure_stage_bounds(curriculum, [(Documents.from_texts(["x"] * 2000), tokens)], 8)
    assert costs is None and len(bounds) == 3
    stages = StreamRouter(None, curriculum, bounds).route_documents(None, tokens)
    shares = np.bincount(stages, weights=tokens.lengths) / tokens.lengths.sum()
    assert np.allclose(shares, 0.25, atol=0.01)
    assert [tokens.lengths[stages == n].max() for n in range(3)] <= [
        tokens.lengths[stages == n].min() for n in (1, 2, 3)
    ]


def test_rare_tokens_make_a_text_difficult_and_length_does_not():
    common, rare = [1, 2, 1, 2], [3, 4, 5, 6]
    tokens = tokens_of(*[common] * 50, common * 20, rare)
    curriculum = Curriculum("difficulty", 2)
    bounds, costs = measure_stage_bounds(curriculum, [(Documents.from_texts(["x"] * 52), tokens)], 8)
    scores = score_documents(curriculum, tokens, costs)
    assert scores[51] > scores[50] and scores[51] > scores[0]
    assert abs(int(scores[50]) - int(scores[0])) < 0.25 * (scores[51] - scores[0])
    assert StreamRouter(None, curriculum, bounds, costs).route_documents(None, tokens)[51] == 1


def test_every_stage_of_a_source_is_repeated_as_often_as_the_source():
    shards = [
        {"stage": stage, "source": source, "tokens": tokens}
        for stage, source, tokens in [
            (1, "web", 60),
            (0, "books", 20),
            (0, "web", 30),
            (1, "web", 10),
            (1, "books", 30),
        ]
    ]
    mix = plan_mix({"web": 100, "books": 50}, {"web": 1, "books": 2}, 4.0, 150)
    assert [(row["stage"], row["source"], row["tokens"], row["planned"]) for row in plan_streams(shards, mix)] == [
        (0, "web", 30, 15),
        (0, "books", 20, 40),
        (1, "web", 70, 35),
        (1, "books", 30, 60),
    ]


def test_stages_of_all_sources_together_take_the_budget_too():
    shards = [{"stage": 0, "tokens": 60}, {"stage": 1, "tokens": 40}]
    mix = plan_mix({"web": 70, "books": 30}, None, 4.0, 50)
    assert [row["planned"] for row in plan_streams(shards, mix)] == [30, 20]


def test_a_curriculum_needs_stages():
    with pytest.raises(ValueError, match="stages is 0"):
        Curriculum("length", 0)


def test_each_stage_of_a_curriculum_by_mix_has_its_part_of_the_tokens_in_its_own_shares():
    stages = [MixStage(0.8, {"web": 3, "books": 1}), MixStage(0.2, {"books": 1, "chat": 1})]
    rows = plan_stages({"web": 1000, "books": 1000, "chat": 100}, stages, 4.0, 1000)
    assert [(row["stage"], row["source"], row["planned"]) for row in rows] == [
        (1, "web", 600),
        (1, "books", 200),
        (2, "books", 100),
        (2, "chat", 100),
    ]
    assert [(row["stage"], row["planned"], row["passed"]) for row in plan_stage_streams(rows)] == [
        (0, 600, 0),
        (0, 200, 0),
        (1, 100, 200),
        (1, 100, 0),
    ]
    table = format_mix(rows, 4.0)
    assert table.index("stage 1") < table.index("in all 800") < table.index("stage 2") < table.index("in all 200")


def test_a_small_source_is_kept_for_the_last_stage():
    stages = [MixStage(9, {"web": 1, "books": 1}), MixStage(1, {"books": 1})]
    rows = plan_stages({"web": 1000, "books": 30}, stages, 4.0, 1000)
    assert [(row["source"], row["planned"]) for row in rows] == [("web", 880), ("books", 20), ("books", 100)]


@pytest.mark.parametrize(
    ("by", "stages"), [("mix", 3), ("length", [MixStage(1, {"web": 1})]), ("mix", [])], ids=["number", "list", "empty"]
)
def test_stages_of_another_kind_than_the_curriculum_are_refused(by, stages):
    with pytest.raises(ValueError, match="stages"):
        Curriculum(by, stages)


def test_a_stage_without_share_or_sources_is_refused():
    with pytest.raises(ValueError, match="got share 0"):
        MixStage(0, {"web": 1})
    with pytest.raises(ValueError, match=r"got share 1, shares \{\}"):
        MixStage(1, {})


def test_a_sample_is_drawn_from_all_places_alike():
    stream = [f"file {number // 1000}, text {number}: " + "x" * 80 for number in range(3000)]
    size = sum(len(text) for text in stream)
    sample, total = sample_evenly(stream, size // 10)
    assert total == size and size // 10 <= sum(map(len, sample)) <= size // 10 + 110
    tenths = [sum(f"file {file}" in text for text in sample) for file in range(3)]
    assert all(70 <= count <= 130 for count in tenths)
    places = sorted(int(text.split()[3].rstrip(":")) for text in sample)
    assert max(after - before for before, after in pairwise(places)) < 150
    assert sample_evenly(reversed(stream), size // 10)[0] == sample


def test_a_sample_larger_than_the_stream_is_all_of_it():
    stream = [f"text {number}" for number in range(50)]
    sample, total = sample_evenly(stream, 10**9)
    assert sorted(sample) == sorted(stream) and total == sum(map(len, stream))
    assert sample_evenly([], 5) == ([], 0)
    assert len(sample_evenly(["é" * 10] * 7, 41)[0]) == 3  # counted in bytes

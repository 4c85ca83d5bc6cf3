import os
from collections import Counter
from dataclasses import fields
from pathlib import Path

import pytest
from datatrove.data import Document

from hf_llm.core.errors import UserError
from hf_llm.core.recipe import to_plain
from hf_llm.data.corpus.config import Rules
from hf_llm.data.corpus.dropped import DETAIL_KEY
from hf_llm.data.corpus.filter_pipeline import FilterStep, make_filter_steps, train_filters
from hf_llm.data.corpus.filters.adult import Adult
from hf_llm.data.corpus.filters.c4 import C4, C4Filter
from hf_llm.data.corpus.filters.classifier import Classifier
from hf_llm.data.corpus.filters.fineweb import FineWeb
from hf_llm.data.corpus.filters.gopher_quality import GopherQuality
from hf_llm.data.corpus.filters.gopher_repetition import GopherRepetition
from hf_llm.data.corpus.filters.language import Language
from hf_llm.data.corpus.filters.perplexity import Perplexity
from hf_llm.data.corpus.filters.spam import Spam
from hf_llm.data.corpus.pii import Redaction
from hf_llm.data.corpus.task_runner import run_steps
from tests.data.corpus import planted

# Which faults each filter has to find.
FINDS = {
    "language": ["language"],
    "gopher_repetition": ["repeated_line", "repeated_phrase"],
    "gopher_quality": ["too_short", "symbols", "bullets", "ellipses", "figures"],
    "c4": ["program", "menu", "placeholder_text"],
    "fineweb": ["menu", "repeated_line"],
    "spam": ["advertisement", "keyword_stuffing", "link_farm", "notice", "placeholder_text"],
    "adult": ["explicit", "profane"],
}


def published(**more) -> Rules:
    """Every filter that needs no examples, as it was published."""
    return Rules(
        language=Language(keep=["en"]),
        gopher_repetition=GopherRepetition(),
        gopher_quality=GopherQuality(),
        c4=C4(min_sentences=3),
        fineweb=FineWeb(),
        spam=Spam(),
        adult=Adult(),
        **more,
    )


def judge(step, text: str) -> tuple[str | None, str | None]:
    """The reason why a filter drops a text and the detail it gives; None and None where it is kept."""
    document = Document(text=text, id="", metadata={})
    result = step.filter(document)
    return (None if result is True else result[1]), document.metadata.get(DETAIL_KEY)


@pytest.mark.parametrize("rule", FINDS)
def test_a_filter_finds_the_faults_planted_for_it_and_keeps_good_prose(rule, tmp_path):
    [step] = [step for step in make_filter_steps(published(), tmp_path) if step.name == rule]
    faulty = planted.faulty()
    for fault in FINDS[rule]:
        assert all(judge(step, text)[0] is not None for text in faulty[fault]), fault
    dropped = [text for text in planted.good() if judge(step, text)[0]]
    right = sum(len(faulty[fault]) for fault in FINDS[rule])
    assert right / (right + len(dropped)) >= (0.95 if rule != "language" else 1), dropped
    assert len(dropped) / len(planted.good()) <= 0.06


def test_a_filter_names_the_fault_it_was_made_for(tmp_path):
    steps = {step.name: step for step in make_filter_steps(published(), tmp_path)}
    for rule in ("spam", "adult"):
        for fault in FINDS[rule]:
            assert {judge(steps[rule], text)[0] for text in planted.faulty()[fault]} == {fault}


def test_every_dropped_document_has_a_detail(tmp_path):
    texts = [text for texts in planted.faulty().values() for text in texts]
    for step in make_filter_steps(published(), tmp_path):
        for text in texts:
            reason, detail = judge(step, text)
            assert (reason is None) == (not detail), (step.name, reason)


@pytest.mark.parametrize(
    "text",
    ["", " \n ", "\n\n\n", "a", "{", "#" * 50, "…", "中文" * 500, "สวัสดี " * 300, "\u200b", "a\n" * 5000, "x" * 300_000],
)
def test_no_filter_fails_on_strange_texts(text, tmp_path):
    for step in make_filter_steps(published(), tmp_path):
        judge(step, text)


def test_filters_run_in_order_and_count_what_they_drop(tmp_path):
    texts = planted.good() + [text for texts in planted.faulty().values() for text in texts]

    def documents(data=None, rank=0, world_size=1):
        return (Document(text=text, id="", metadata={}) for text in texts)

    steps = make_filter_steps(published(pii=Redaction()), tmp_path)
    assert [step.name for step in steps] == [*FINDS, "pii"]
    first = steps[0]
    run, first.run = first.run, lambda data, rank, world_size: run(documents(), rank, world_size)
    stats = run_steps(steps)
    assert stats[0].dropped["other_language"] == len(planted.faulty()["language"])
    assert stats[-1].documents + sum(sum(each.dropped.values()) for each in stats) == len(texts)
    assert stats[-1].documents >= 0.9 * len(planted.good())


def test_rules_are_read_from_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "corpus: {rules: {gopher_quality: {}, c4: null, language: {keep: [en, de]}, gopher_repetition: "
        "{top_ngrams: {2: 0.25}}, pii: {kinds: [email]}}}"
    )
    rules = _load(recipe)
    assert rules.gopher_quality == GopherQuality() and rules.c4 is None and rules.fineweb is None
    assert rules.language.keep == ["en", "de"] and rules.gopher_repetition.top_ngrams == {2: 0.25}
    names = [step.name for step in make_filter_steps(rules, tmp_path)]
    assert names == ["language", "gopher_repetition", "gopher_quality", "pii"]
    recipe.write_text("corpus: {rules: {gopher_qualty: {}, language: {keep: [xx]}, perplexity: {}}}")
    with pytest.raises(UserError, match=r"(?s)did you mean gopher_quality.*keep: \['xx'\].*perplexity.good: missing"):
        _load(recipe)


def _load(path: Path) -> Rules:
    from dataclasses import dataclass

    from hf_llm.core.recipe import build_recipe, read_tree

    @dataclass
    class Section:
        rules: Rules

    @dataclass
    class Recipe:
        corpus: Section

    _, tree = read_tree([str(path)])
    return build_recipe(Recipe, tree, str(path), ("corpus", "name")).corpus.rules


def example_folders(folder: Path) -> tuple[Path, Path]:
    """Good: the documentation's prose, sentence by sentence. Bad: shuffled words of spam."""
    good, bad = folder / "good.txt", folder / "bad"
    good.write_text("\n<|endoftext|>\n".join(_pieces(" ".join(planted.good()), 300)), encoding="utf-8")
    bad.mkdir()
    words = " ".join([*planted.SPAM.values(), *planted.FOREIGN.values()]).split()
    for number in range(150):
        chosen = [words[(number * 7919 + i * (31 + number)) % len(words)] for i in range(60)]
        (bad / f"{number}.txt").write_text(" ".join(chosen), encoding="utf-8")
    return good, bad


def _pieces(text: str, size: int) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


def test_models_are_kept_and_trained_again_when_the_texts_change(tmp_path):
    good, bad = example_folders(tmp_path)
    rules = Rules(perplexity=Perplexity(good=str(good)), classifier=Classifier(good=str(good), bad=str(bad)))
    models = tmp_path / "models"
    reports = train_filters(rules, models)
    assert reports["classifier"]["auc"] > 0.95 and reports["perplexity"]["limit"] > reports["perplexity"]["median"]
    files = sorted(models.iterdir())
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    assert train_filters(rules, models) == reports
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in files] == before
    assert train_filters(rules, tmp_path / "again") == reports
    assert [path.read_bytes() for path in sorted((tmp_path / "again").iterdir())] == [each[0] for each in before]
    stricter = Rules(classifier=Classifier(good=str(good), bad=str(bad), min_probability=0.9))
    train_filters(stricter, models)
    assert sorted(models.iterdir()) == files
    (bad / "more.txt").write_text("another bad text " * 20)
    train_filters(rules, models)
    assert len(list(models.iterdir())) == len(files) + 2


def test_trained_filters_keep_the_good_and_drop_the_bad(tmp_path):
    good, bad = example_folders(tmp_path)
    rules = Rules(perplexity=Perplexity(good=str(good)), classifier=Classifier(good=str(good), bad=str(bad)))
    train_filters(rules, tmp_path / "models")
    bad_texts = [path.read_text(encoding="utf-8") for path in bad.iterdir()]
    for step in make_filter_steps(rules, tmp_path / "models"):
        good_verdicts = Counter(judge(step, text)[0] is None for text in planted.good())
        assert good_verdicts[True] / good_verdicts.total() > 0.9, step.name
        bad_reasons = Counter(judge(step, text)[0] for text in bad_texts)
        assert 1 - bad_reasons[None] / bad_reasons.total() > 0.9, step.name


@pytest.mark.parametrize("rules", ["perplexity", "classifier"])
def test_examples_that_nothing_can_be_trained_on_are_refused(rules, tmp_path):
    good, bad = example_folders(tmp_path)
    few = tmp_path / "few.txt"
    few.write_text("only one text here")
    if rules == "perplexity":
        faults = [(Rules(perplexity=Perplexity(good=str(few))), "at least 20")]
    else:
        faults = [
            (Rules(classifier=Classifier(good=str(few), bad=str(bad))), "classifier.good.*at least 20"),
            (Rules(classifier=Classifier(good=str(good), bad=str(tmp_path / "none"))), "does not exist"),
            (Rules(classifier=Classifier(good=str(good), bad=str(good))), "cannot be told apart"),
        ]
    for each, message in faults:
        with pytest.raises(UserError, match=message):
            train_filters(each, tmp_path / "models")


def test_a_filter_has_the_name_of_its_field(tmp_path):
    good, bad = example_folders(tmp_path)
    trained = {
        "perplexity": Perplexity(good=str(good)),
        "classifier": Classifier(good=str(good), bad=str(bad)),
    }
    rules = published(pii=Redaction(), **trained)
    train_filters(rules, tmp_path / "models")
    steps = make_filter_steps(rules, tmp_path / "models")
    assert [step.name for step in steps] == [entry.name for entry in fields(Rules)]


def test_a_step_adds_the_changes_of_its_filter_to_its_statistics():
    step = FilterStep(C4Filter(C4(min_sentences=1)))
    documents = [Document(text="A line of words.\nMenu", id=""), Document(text="Menu\nMenu", id="", metadata={})]
    assert [document.text for document in step.run(documents)] == ["A line of words."]
    totals = {label: int(metric.total) for label, metric in step.stats.stats.items()}
    assert totals == {
        "lines_no_terminal_punctuation": 3,
        "total": 2,
        "forwarded": 1,
        "doc_len": 16,
        "dropped": 1,
        "dropped_too_few_sentences": 1,
    }
    assert documents[1].metadata == {DETAIL_KEY: "0 sentences in 0 lines, 2 lines were cut out"}


def test_settings_are_plain_values_for_the_manifest():
    assert to_plain(published())["gopher_quality"]["min_words"] == 50


def test_decisions_are_those_of_datatrove_on_real_text(tmp_path):
    pytest.importorskip("spacy")
    data = os.environ.get("HF_LLM_DATA")
    if not data:
        pytest.skip("HF_LLM_DATA is not set")
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )

    text = Path(data, "wikitext2", "valid.txt").read_text(encoding="utf-8")[:250_000]
    page = Path(data, "html_multilingual", "blog.python.org.html").read_text(encoding="utf-8")
    texts = [*_pieces(text, 2500), *_pieces(page, 4000)]
    rules = Rules(gopher_repetition=GopherRepetition(), gopher_quality=GopherQuality(), c4=C4(), fineweb=FineWeb())
    ours = make_filter_steps(rules, tmp_path)
    theirs = [GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(), FineWebQualityFilter()]
    for our, their in zip(ours, theirs, strict=True):
        dropped = 0
        for text in texts:
            one, other = Document(text=text, id="", metadata={}), Document(text=text, id="")
            assert our.filter(one) == their.filter(other)
            assert one.text == other.text
            dropped += one.metadata.get(DETAIL_KEY) is not None
        assert dropped

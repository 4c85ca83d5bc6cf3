import os
from collections import Counter
from pathlib import Path

import pytest
from datatrove.data import Document

from hf_llm.core.errors import UserError
from hf_llm.core.recipe import plain
from hf_llm.data.corpus.filter_pipeline import Rules
from hf_llm.data.corpus.filters.adult import Adult
from hf_llm.data.corpus.filters.c4 import C4
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

# Which rule has to find which fault.
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
    """Every rule that needs no examples, as it was published."""
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


def judged(step, text: str) -> tuple[str | None, dict]:
    """The reason why a rule drops a text, or None, and the metadata it leaves."""
    document = Document(text=text, id="", metadata={})
    result = step.filter(document)
    return (None if result is True else result[1]), document.metadata


@pytest.mark.parametrize("rule", FINDS)
def test_a_rule_finds_the_faults_planted_for_it_and_spares_good_prose(rule, tmp_path):
    [step] = [step for step in published().steps(tmp_path) if step.name == rule]
    faulty = planted.faulty()
    for fault in FINDS[rule]:
        found = [judged(step, text)[0] for text in faulty[fault]]
        assert sum(reason is not None for reason in found) / len(found) == 1, fault
    dropped = [text for text in planted.good() if judged(step, text)[0]]
    right = sum(len(faulty[fault]) for fault in FINDS[rule])
    assert right / (right + len(dropped)) >= (0.95 if rule != "language" else 1), dropped
    assert len(dropped) / len(planted.good()) <= 0.06


def test_a_rule_names_the_fault_it_was_made_for(tmp_path):
    steps = {step.name: step for step in published().steps(tmp_path)}
    for rule in ("spam", "adult"):
        for fault in FINDS[rule]:
            assert {judged(steps[rule], text)[0] for text in planted.faulty()[fault]} == {fault}


def test_every_reject_says_why(tmp_path):
    texts = [text for texts in planted.faulty().values() for text in texts]
    for step in published().steps(tmp_path):
        for text in texts:
            reason, about = judged(step, text)
            assert (reason is None) == (not about.get("because")), (step.name, reason)


@pytest.mark.parametrize(
    "text",
    ["", " \n ", "\n\n\n", "a", "{", "#" * 50, "…", "中文" * 500, "สวัสดี " * 300, "\u200b", "a\n" * 5000, "x" * 300_000],
)
def test_no_rule_stumbles_over_strange_texts(text, tmp_path):
    for step in published().steps(tmp_path):
        judged(step, text)


def test_rules_run_in_order_and_count_what_they_drop(tmp_path):
    texts = planted.good() + [text for texts in planted.faulty().values() for text in texts]

    def documents(data=None, rank=0, world_size=1):
        return (Document(text=text, id="", metadata={}) for text in texts)

    steps = published(pii=Redaction()).steps(tmp_path)
    assert [step.name for step in steps] == [*FINDS, "pii"]
    first = steps[0]
    run, first.run = first.run, lambda data, rank, world_size: run(documents(), rank, world_size)
    flows = run_steps(steps)
    assert flows[0].dropped["other_language"] == len(planted.faulty()["language"])
    assert flows[-1].documents + sum(sum(flow.dropped.values()) for flow in flows) == len(texts)
    assert flows[-1].documents >= 0.9 * len(planted.good())


def test_rules_are_read_from_a_recipe(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "corpus: {rules: {gopher_quality: {}, c4: null, language: {keep: [en, de]}, gopher_repetition: "
        "{top_ngrams: {2: 0.25}}, pii: {kinds: [email]}}}"
    )
    rules = _load(recipe)
    assert rules.gopher_quality == GopherQuality() and rules.c4 is None and rules.fineweb is None
    assert rules.language.keep == ["en", "de"] and rules.gopher_repetition.top_ngrams == {2: 0.25}
    assert [step.name for step in rules.steps(tmp_path)] == ["language", "gopher_repetition", "gopher_quality", "pii"]
    recipe.write_text("corpus: {rules: {gopher_qualty: {}, language: {keep: [xx]}, perplexity: {}}}")
    with pytest.raises(UserError, match=r"(?s)did you mean gopher_quality.*keep: \['xx'\].*perplexity.good: missing"):
        _load(recipe)


def _load(path: Path) -> Rules:
    from dataclasses import dataclass

    from hf_llm.core import recipe

    @dataclass
    class Section:
        rules: Rules

    @dataclass
    class Recipe:
        corpus: Section

    return recipe.Run([str(path)]).read(Recipe).corpus.rules


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


def test_what_is_learnt_is_kept_and_learnt_anew_when_the_texts_change(tmp_path):
    good, bad = example_folders(tmp_path)
    rules = Rules(perplexity=Perplexity(good=str(good)), classifier=Classifier(good=str(good), bad=str(bad)))
    reports, state = rules.prepare(tmp_path / "learnt"), rules.state()
    assert reports["classifier"]["auc"] > 0.95 and reports["perplexity"]["limit"] > reports["perplexity"]["median"]
    files = sorted((tmp_path / "learnt").iterdir())
    before = [(path.read_bytes(), path.stat().st_mtime_ns) for path in files]
    assert rules.prepare(tmp_path / "learnt") == reports
    assert [(path.read_bytes(), path.stat().st_mtime_ns) for path in files] == before
    again = rules.prepare(tmp_path / "again")
    assert again == reports
    assert [path.read_bytes() for path in sorted((tmp_path / "again").iterdir())] == [each[0] for each in before]
    sterner = Rules(classifier=Classifier(good=str(good), bad=str(bad), min_probability=0.9))
    sterner.prepare(tmp_path / "learnt")
    assert sorted((tmp_path / "learnt").iterdir()) == files and sterner.state() != state
    (bad / "more.txt").write_text("another bad text " * 20)
    assert rules.state() != state
    rules.prepare(tmp_path / "learnt")
    assert len(list((tmp_path / "learnt").iterdir())) == len(files) + 2


def test_learnt_rules_keep_the_good_and_drop_the_bad(tmp_path):
    good, bad = example_folders(tmp_path)
    rules = Rules(perplexity=Perplexity(good=str(good)), classifier=Classifier(good=str(good), bad=str(bad)))
    rules.prepare(tmp_path / "learnt")
    bad_texts = [path.read_text(encoding="utf-8") for path in bad.iterdir()]
    for step in rules.steps(tmp_path / "learnt"):
        kept = Counter(judged(step, text)[0] is None for text in planted.good())
        assert kept[True] / kept.total() > 0.9, step.name
        gone = Counter(judged(step, text)[0] for text in bad_texts)
        assert 1 - gone[None] / gone.total() > 0.9, step.name


@pytest.mark.parametrize("rules", ["perplexity", "classifier"])
def test_examples_that_teach_nothing_are_refused(rules, tmp_path):
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
            each.prepare(tmp_path / "learnt")


def test_settings_are_plain_values_for_the_manifest():
    assert plain(published())["gopher_quality"]["min_words"] == 50


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
    ours = Rules(
        gopher_repetition=GopherRepetition(), gopher_quality=GopherQuality(), c4=C4(), fineweb=FineWeb()
    ).steps(tmp_path)
    theirs = [GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter(), FineWebQualityFilter()]
    for our, their in zip(ours, theirs, strict=True):
        dropped = 0
        for text in texts:
            one, other = Document(text=text, id="", metadata={}), Document(text=text, id="")
            assert our.filter(one) == their.filter(other)
            assert one.text == other.text
            dropped += one.metadata.get("because") is not None
        assert dropped

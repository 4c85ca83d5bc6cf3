import json
import os
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import file_digests
from hf_llm.data.corpus import build as corpus_module
from hf_llm.data.corpus import clean_pass
from hf_llm.data.corpus.build import check_space, make_corpus
from hf_llm.data.corpus.clean_pass import clean_read_task
from hf_llm.data.corpus.config import Corpus, Deduplicate, Rules, Source
from hf_llm.data.corpus.corpus_files import list_corpus_files, read_corpus_texts
from hf_llm.data.corpus.dedup.substring import RepeatedPassages
from hf_llm.data.corpus.filters.gopher_quality import GopherQuality
from hf_llm.data.corpus.sources import list_read_tasks
from hf_llm.data.corpus.splits import SPLIT_NAMES, Split

WORDS = ("red", "fox", "river", "stone", "child", "tower", "answers", "follows", "paints", "golden", "crow", "baker")


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setattr("hf_llm.data.corpus.task_runner.count_cores", lambda: 1)


def texts(count, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=30)) + f" {i} {seed}." for i in range(count)]


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row if isinstance(row, dict) else {"text": row}) + "\n" for row in rows))
    return Source(license="cc0-1.0", path=str(path))


def made(folder, *sources, key="", **settings):
    folder.mkdir(exist_ok=True)
    section = Corpus(sources=list(sources), **{"min_chars": 20, **settings})
    return make_corpus(section, folder, key)


def split_of_text(folder):
    return {text: split for split in SPLIT_NAMES for text in read_corpus_texts(folder, split)}


def test_datasets_opens_the_corpus(tmp_path):
    import datasets

    rows = [{"text": text, "url": f"https://example.org/{i}"} for i, text in enumerate(texts(200))]
    ledger = made(tmp_path / "corpus", jsonl(tmp_path / "a.jsonl", rows))
    data_set = datasets.load_dataset(str(tmp_path / "corpus"), cache_dir=str(tmp_path / "cache"))
    assert {name: len(data_set[name]) for name in SPLIT_NAMES} == {
        n: ledger["splits"][n]["documents"] for n in SPLIT_NAMES
    }
    assert data_set["train"].column_names == ["id", "text", "source", "license", "language", "url", "metadata"]
    row = data_set["train"][0]
    line = int(row["url"].rpartition("/")[2]) + 1
    assert row["source"] == "a.jsonl" and row["license"] == "cc0-1.0"
    assert json.loads(row["metadata"]) == {"file": "a.jsonl", "line": line}


def test_equal_texts_are_kept_once_whatever_their_order(tmp_path):
    unique = texts(150)
    rows = [*unique, *(f"{text}  \r\n" for text in unique[:60]), *unique[:30]]
    results = []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        folder = tmp_path / str(seed)
        ledger = made(folder, jsonl(tmp_path / "a.jsonl", rows))
        rule = ledger["sources"]["a.jsonl"]["rules"]["exact_duplicates"]
        assert (rule["documents"], rule["dropped"]) == (150, {"duplicate": 90})
        results.append({split: list(read_corpus_texts(folder, split)) for split in SPLIT_NAMES})
    assert sorted(text for split in results[0].values() for text in split) == sorted(unique)
    assert results[0] == results[1] == results[2]


def test_of_equal_texts_the_earliest_source_keeps_its_own(tmp_path):
    a, b = (jsonl(tmp_path / name, texts(100)) for name in ("a.jsonl", "b.jsonl"))
    b.license = "mit"
    ledger = made(tmp_path / "one", a, b)
    assert {name: counts["documents"] for name, counts in ledger["licenses"].items()} == {"cc0-1.0": 100}
    assert list(made(tmp_path / "two", b, a)["licenses"]) == ["mit"]


def test_adding_documents_moves_none_of_the_others(tmp_path):
    made(tmp_path / "small", jsonl(tmp_path / "a.jsonl", texts(200)))
    made(tmp_path / "large", jsonl(tmp_path / "b.jsonl", [*texts(300, seed=1), *texts(200)]))
    small, large = split_of_text(tmp_path / "small"), split_of_text(tmp_path / "large")
    assert small.items() <= large.items() and len(large) == 500


def test_the_split_has_its_shares():
    counts = {name: 0 for name in SPLIT_NAMES}
    for i in range(10_000):
        counts[Split(0.7, 0.2, 0.1).choose_split(str(i))] += 1
    assert abs(counts["train"] - 7000) < 200 and abs(counts["validation"] - 2000) < 200
    with pytest.raises(ValueError, match="add up to 1"):
        Split(0.8, 0.1, 0.2)
    with pytest.raises(ValueError, match="need a share"):
        Split(1.0, 0.0, 0.0)


def test_the_ledger_has_the_licences_of_what_each_source_has_kept(tmp_path):
    rows = [{"text": text, "license": ("MIT", "psf-2.0")[i % 2]} for i, text in enumerate(texts(40))]
    first = jsonl(tmp_path / "a.jsonl", rows)
    second = jsonl(tmp_path / "b.jsonl", [*texts(40)[:10], *texts(30, seed=2)])  # ten copies, which are dropped
    ledger = made(tmp_path / "corpus", first, second)
    by_source = {name: entry["licenses"] for name, entry in ledger["sources"].items()}
    assert {name: entry["documents"] for name, entry in by_source["a.jsonl"].items()} == {"mit": 20, "psf-2.0": 20}
    assert {name: entry["documents"] for name, entry in by_source["b.jsonl"].items()} == {"cc0-1.0": 30}
    for name, total in ledger["licenses"].items():
        assert total["bytes"] == sum(entry.get(name, {"bytes": 0})["bytes"] for entry in by_source.values())


def test_several_shards_hold_what_one_holds(tmp_path, monkeypatch):
    source = jsonl(tmp_path / "a.jsonl", [*texts(400), *texts(100)])
    one = made(tmp_path / "one", source)
    monkeypatch.setattr(corpus_module, "SHARD_BYTES", 12_000)
    monkeypatch.setattr(clean_pass, "BUFFER_BYTES", 9_000)
    several = made(tmp_path / "several", source)
    assert {**several, "seconds": 0} == {**one, "seconds": 0}
    assert len(list_corpus_files(tmp_path / "several", "train")) > 4
    for split in SPLIT_NAMES:
        assert list(read_corpus_texts(tmp_path / "several", split)) == list(read_corpus_texts(tmp_path / "one", split))


def test_workers_make_what_one_process_makes(tmp_path, monkeypatch):
    sources = [jsonl(tmp_path / f"{name}.jsonl", texts(100, seed)) for seed, name in enumerate("abc")]
    made(tmp_path / "one", *sources)
    monkeypatch.setattr("hf_llm.data.corpus.task_runner.count_cores", lambda: 2)
    made(tmp_path / "many", *sources)
    assert file_digests(tmp_path / "many") == file_digests(tmp_path / "one")


def test_a_hub_data_set_is_read_row_by_row_up_to_take(tmp_path):
    (tmp_path / "set").mkdir()
    jsonl(tmp_path / "set" / "train.jsonl", texts(300))  # `datasets` opens a folder as it opens a repository of the Hub
    for streaming in (True, False):
        source = Source(license="odc-by", hub=str(tmp_path / "set"), take=200, streaming=streaming)
        made(tmp_path / str(streaming), source)
        assert sorted(split_of_text(tmp_path / str(streaming))) == sorted(texts(200))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.py", "a.txt.gz"])
def test_a_file_that_vanishes_while_the_corpus_is_made_is_named(tmp_path, name):
    (tmp_path / name).write_text("text")
    [part] = list_read_tasks([Source(license="mit", path=str(tmp_path))])
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name} cannot be read: No such file"):
        clean_read_task(Corpus(sources=[part.source]), part, tmp_path, "part")


def test_what_was_read_is_kept_when_another_file_vanishes(tmp_path, monkeypatch):
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        jsonl(tmp_path / name / "x.jsonl", texts(100, seed=ord(name)))
    sources = [Source(license="mit", path=str(tmp_path / name)) for name in ("a", "b", "c")]
    tasks = list_read_tasks(sources)
    (tmp_path / "b" / "x.jsonl").rename(tmp_path / "away")
    with monkeypatch.context() as patch:
        patch.setattr(
            corpus_module, "list_read_tasks", lambda sources: tasks
        )  # it vanished after the tasks were listed
        with pytest.raises(UserError, match=r"b/x\.jsonl cannot be read"):
            made(tmp_path / "corpus", *sources)
    assert len(list((tmp_path / "corpus" / "work").glob("*.json"))) == 2
    (tmp_path / "away").rename(tmp_path / "b" / "x.jsonl")
    assert sum(counts["documents"] for counts in made(tmp_path / "corpus", *sources)["splits"].values()) == 300


def test_lengths_are_kept_to(tmp_path):
    rows = [*texts(100), "short", "x" * 3000]
    rules = made(tmp_path / "c", jsonl(tmp_path / "a.jsonl", rows), max_chars=2000)["sources"]["a.jsonl"]["rules"]
    assert rules["length"]["documents"] == 100
    assert rules["length"]["dropped"] == {"too_short": 1, "too_long": 1}


def test_changed_input_is_not_taken_for_what_was_read_before(tmp_path, monkeypatch):
    source = jsonl(tmp_path / "a.jsonl", texts(100))
    with monkeypatch.context() as patch:
        patch.setattr(corpus_module, "make_ledger", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "c", source)
    assert list((tmp_path / "c" / "work").glob("*.json"))
    jsonl(tmp_path / "a.jsonl", texts(120, seed=5))
    made(tmp_path / "c", source)
    assert sorted(split_of_text(tmp_path / "c")) == sorted(texts(120, seed=5))


def test_a_few_bad_rows_are_counted_and_many_are_an_error(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [json.dumps({"text": text}) for text in texts(95)]
    path.write_text("\n".join([*lines, "{", "[]", '{"text": null}', '{"text": 5}']))
    source = Source(license="unknown", path=str(path))
    ledger = made(tmp_path / "c", source)["sources"]["a.jsonl"]
    assert ledger["rules"]["read"]["dropped"] == {"malformed JSON": 1, "no JSON object": 1, "text is no text": 1}
    assert ledger["input"]["left_out"] == {"no text": 1}
    examples = {reason: len(lines) for reason, lines in ledger["unreadable"].items()}
    assert examples == ledger["rules"]["read"]["dropped"]
    path.write_text("\n".join([*lines, *["{"] * 15]))
    with pytest.raises(UserError, match=r"corpus source a\.jsonl: 15 of 110 records are unreadable"):
        made(tmp_path / "d", source)


def test_of_texts_that_are_nearly_equal_the_longest_of_the_earliest_source_is_kept(tmp_path):
    originals = [" ".join(random.Random(i).choices(WORDS, k=120)) for i in range(40)]
    longer = [f"{text} and so on to the end" for text in originals]
    a, b = jsonl(tmp_path / "a.jsonl", originals + longer), jsonl(tmp_path / "b.jsonl", [f"so {t}" for t in longer])
    ledger = made(tmp_path / "c", a, b)
    assert sorted(split_of_text(tmp_path / "c")) == sorted(longer)
    assert ledger["sources"]["a.jsonl"]["rules"]["near_duplicates"]["dropped"] == {"near_duplicate": 40}
    assert ledger["sources"]["b.jsonl"]["rules"]["near_duplicates"]["documents"] == 0
    both = made(tmp_path / "all", a, b, deduplicate=Deduplicate(near=None))
    assert sum(counts["documents"] for counts in both["splits"].values()) == 120


def test_a_passage_that_repeats_stays_in_one_document(tmp_path):
    passage = " ".join(f"word{i}" for i in range(60))
    rows = [f"{text} {passage} {text[::-1]}" for text in texts(40)]
    settings = {"deduplicate": Deduplicate(near=None, substring=RepeatedPassages())}
    ledger = made(tmp_path / "c", jsonl(tmp_path / "a.jsonl", rows), **settings)
    left = list(split_of_text(tmp_path / "c"))
    assert len(left) == 40 and sum(passage in text for text in left) == 1
    assert ledger["cut_characters"] >= 39 * len(passage)
    rule = ledger["sources"]["a.jsonl"]["rules"]["repeated_passages"]
    assert rule["bytes"] < ledger["sources"]["a.jsonl"]["rules"]["exact_duplicates"]["bytes"] - 39 * len(passage)


def test_too_small_a_disk_is_an_error_before_anything_is_read(tmp_path):
    [part] = list_read_tasks([jsonl(tmp_path / "a.jsonl", texts(5))])
    large = replace(part, bytes=10**15)
    with pytest.raises(UserError, match=r"GB free; a corpus of 1,000 TB of text takes about"):
        check_space([large], tmp_path, Corpus(sources=[part.source]))
    check_space([part], tmp_path, Corpus(sources=[part.source]))


def test_sizes_of_a_small_disk_are_told_in_a_unit_that_says_something(tmp_path, monkeypatch):
    [part] = list_read_tasks([jsonl(tmp_path / "a.jsonl", texts(5))])
    monkeypatch.setattr(corpus_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=3000))
    (tmp_path / "work").mkdir()
    with pytest.raises(UserError, match=r"has 3 kB free; a corpus of 3\.1 MB of text takes about 3\.1 MB while"):
        check_space([replace(part, bytes=3 << 20)], tmp_path / "work", Corpus(sources=[part.source]))


def test_space_that_an_interrupted_run_has_used_is_not_needed_again(tmp_path, monkeypatch):
    [part] = list_read_tasks([jsonl(tmp_path / "a.jsonl", texts(5))])
    (tmp_path / "work").mkdir()
    monkeypatch.setattr(corpus_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=part.bytes - 10))
    with pytest.raises(UserError, match="Free some space"):
        check_space([part], tmp_path / "work", Corpus(sources=[part.source]))
    (tmp_path / "work/made").write_bytes(b"x" * 10)
    check_space([part], tmp_path / "work", Corpus(sources=[part.source]))


def test_documents_are_not_cleaned_again_when_only_later_passes_change(tmp_path, monkeypatch):
    cleaned = []
    monkeypatch.setattr(corpus_module, "clean_read_task", lambda *a: cleaned.append(a[1].label) or clean_read_task(*a))
    sources = [jsonl(tmp_path / f"{name}.jsonl", texts(100, seed)) for seed, name in enumerate("ab")]
    with pytest.raises(UserError, match="none of them in test"):
        made(tmp_path / "c", *sources, key="1", split=Split(0.5, 0.499999999, 0.000000001))
    made(tmp_path / "c", *sources, key="2", split=Split(0.5, 0.3, 0.2))
    assert cleaned == ["a.jsonl", "b.jsonl"]
    again = replace(sources[1], rules=Rules(gopher_quality=GopherQuality()))
    with pytest.raises(UserError, match="none of them in test"):
        made(tmp_path / "d", sources[0], again, key="1", split=Split(0.5, 0.499999999, 0.000000001))
    made(tmp_path / "d", *sources, key="2", split=Split(0.5, 0.3, 0.2))
    assert cleaned == ["a.jsonl", "b.jsonl"] * 2 + ["b.jsonl"]
    made(tmp_path / "e", *sources, split=Split(0.5, 0.3, 0.2))
    assert file_digests(tmp_path / "d") == file_digests(tmp_path / "e")


def test_names_and_addresses_with_halves_of_characters_are_written(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    with open(os.fsencode(folder) + b"/caf\xe9.txt", "w") as file:
        file.write(texts(1)[0])
    rows = [{"text": text, "url": "http://x/\ud83d"} for text in texts(100, 1)]
    ledger = made(tmp_path / "c", Source(license="mit", path=str(folder)), jsonl(tmp_path / "a.jsonl", rows))
    assert sum(counts["documents"] for counts in ledger["splits"].values()) == 101


def test_a_row_without_the_column_is_dropped_where_another_has_it(tmp_path):
    rows = [{"text": text} for text in texts(100)]
    ledger = made(tmp_path / "c", jsonl(tmp_path / "a.jsonl", [*rows[:50], {"title": "x"}, *rows[50:]]))
    assert "line 51" in ledger["sources"]["a.jsonl"]["unreadable"]["no column text"][0]
    ledger = made(tmp_path / "d", jsonl(tmp_path / "b.jsonl", [{"title": "x"}, *rows]))
    assert "line 1" in ledger["sources"]["b.jsonl"]["unreadable"]["no column text"][0]
    with pytest.raises(UserError, match="line 1 has no column 'text'"):
        made(tmp_path / "e", jsonl(tmp_path / "c.jsonl", [{"title": "x"}] * 100))


def test_sources_of_one_name_tell_all_their_licences(tmp_path):
    a, b = jsonl(tmp_path / "a.jsonl", texts(50)), jsonl(tmp_path / "b.jsonl", texts(50, 1))
    ledger = made(tmp_path / "c", replace(a, name="mine"), replace(b, name="mine", license="unknown"))
    assert ledger["sources"]["mine"]["license"] == "cc0-1.0, unknown"


def test_files_of_one_name_size_and_time_are_all_read(tmp_path, monkeypatch):
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        held = "".join(text + "\n<|endoftext|>\n" for text in texts(40, number))
        (tmp_path / str(number) / "a.txt").write_text(held.ljust(20_000))
        os.utime(tmp_path / str(number) / "a.txt", (1, 1))
    monkeypatch.setattr("hf_llm.data.corpus.sources.PART_BYTES", 1)
    ledger = made(tmp_path / "c", Source(license="mit", path=str(tmp_path / "*/a.txt")))
    assert sum(counts["documents"] for counts in ledger["splits"].values()) == 120


def test_code_is_not_filtered_by_rules_for_prose(tmp_path):
    prose, code = Rules(gopher_quality=GopherQuality()), Source(license="mit", path=str(tmp_path), format="code")
    section = Corpus(sources=[code], rules=prose)
    assert section.select_rules(code) == Rules()
    assert section.select_rules(Source(license="mit", path="a")) == prose
    assert section.select_rules(Source(license="mit", path="a", rules=Rules())) == Rules()


@pytest.mark.parametrize(("rows", "message"), [([], "has 0 documents"), (["too short"], "length 0")])
def test_a_corpus_without_documents_is_an_error(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        made(tmp_path / "c", jsonl(tmp_path / "a.jsonl", rows))


def test_a_split_without_documents_is_an_error(tmp_path):
    with pytest.raises(UserError, match="none of them in validation"):
        made(tmp_path / "c", jsonl(tmp_path / "a.jsonl", texts(1)))


@pytest.mark.skipif("HF_LLM_DATA" not in os.environ, reason="real data: set HF_LLM_DATA")
def test_real_text_becomes_documents(tmp_path):
    data = os.environ["HF_LLM_DATA"]
    sources = [
        Source(license="unknown", path=f"{data}/{name}") for name in ("tinyshakespeare", "wikitext2", "web_text")
    ]
    ledger = made(tmp_path / "c", *sources, min_chars=100)
    left = {name: entry["rules"]["exact_duplicates"]["documents"] for name, entry in ledger["sources"].items()}
    assert left["tinyshakespeare"] > 100 and left["wikitext2"] > 600 and left["web_text"] >= 300
    assert all(ledger["splits"][name]["documents"] > 50 for name in SPLIT_NAMES)
    before = ledger["sources"]["wikitext2"]["rules"]["read"]["bytes"]
    assert ledger["sources"]["wikitext2"]["rules"]["exact_duplicates"]["bytes"] > 0.98 * before

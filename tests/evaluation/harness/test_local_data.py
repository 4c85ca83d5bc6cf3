"""Local rows of each set, in the forms in which it lies around, to the columns that the harness reads."""

import json
import os
from pathlib import Path

import pytest

from hf_llm.core.errors import UserError
from hf_llm.evaluation.benchmark import NotRunError, TaskSettings
from hf_llm.evaluation.harness.local_data import DataNeed, find_data_files, read_local_data
from hf_llm.evaluation.harness.tasks import find_benchmarks

DATA = os.environ.get("HF_LLM_DATA", "")

ARC = {"text": ["ice", "fire"], "label": ["A", "B"]}
AUTHORS_CHOICES = [{"text": "ice", "label": "A"}, {"text": "fire", "label": "B"}]

# Set, subset, a row as it lies around, the columns that the harness reads.
FORMS = {
    "arc of llm-foundry": (
        "allenai/ai2_arc", "ARC-Easy",
        {"query": "Question: What is cold?", "choices": ["ice", "fire"], "gold": 0},
        {"question": "What is cold?", "choices": ARC, "answerKey": "A"},
    ),
    "arc of its authors": (
        "allenai/ai2_arc", "ARC-Easy",
        {"id": "1", "answerKey": "A", "question": {"stem": "What is cold?", "choices": AUTHORS_CHOICES}},
        {"question": "What is cold?", "choices": ARC, "answerKey": "A"},
    ),
    "arc of the Hub": (
        "allenai/ai2_arc", "ARC-Easy",
        {"id": "1", "question": "What is cold?", "choices": ARC, "answerKey": "A"},
        {"question": "What is cold?", "choices": ARC, "answerKey": "A"},
    ),
    "openbookqa of llm-foundry": (
        "allenai/openbookqa", "main",
        {"query": "Something cold is", "choices": ["ice", "fire"], "gold": 0},
        {"question_stem": "Something cold is", "choices": ARC, "answerKey": "A"},
    ),
    "openbookqa of its authors": (
        "allenai/openbookqa", "main",
        {"question": {"stem": "Something cold is", "choices": AUTHORS_CHOICES}, "answerKey": "A"},
        {"question_stem": "Something cold is", "choices": ARC, "answerKey": "A"},
    ),
    "piqa of llm-foundry": (
        "baber/piqa", None,
        {"query": "Question: Cool tea.\n", "choices": ["Add ice.", "Add fire."], "gold": 0},
        {"goal": "Cool tea.", "sol1": "Add ice.", "sol2": "Add fire.", "label": 0},
    ),
    "copa of llm-foundry": (
        "aps/super_glue", "copa",
        {"query": "The tea was cold, because", "choices": ["it had ice.", "it had fire."], "gold": 0},
        {"premise": "The tea was cold.", "choice1": "it had ice.", "choice2": "it had fire.", "question": "cause",
         "label": 0},
    ),
    "boolq of llm-foundry": (
        "aps/super_glue", "boolq",
        {"query": "Passage: Ice is cold.\nQuestion: is ice cold?", "choices": ["no", "yes"], "gold": 1},
        {"passage": "Ice is cold.", "question": "is ice cold", "label": 1},
    ),
    "boolq of its authors": (
        "aps/super_glue", "boolq",
        {"passage": "Ice is cold.", "question": "is ice cold", "answer": True, "title": "Ice"},
        {"passage": "Ice is cold.", "question": "is ice cold", "label": 1},
    ),
    "winogrande of llm-foundry": (
        "allenai/winogrande", "winogrande_xl",
        {"context_options": ["Ann met Amy as Ann", "Ann met Amy as Amy"], "continuation": "was in town.", "gold": 1},
        {"sentence": "Ann met Amy as _ was in town.", "option1": "Ann", "option2": "Amy", "answer": "2"},
    ),
    "lambada of llm-foundry": (
        "EleutherAI/lambada_openai", "default",
        {"context": "He went\nto the", "continuation": "shop"},
        {"text": "He went\nto the shop"},
    ),
    "hellaswag of its authors": (
        "Rowan/hellaswag", None,
        {"ind": 4, "activity_label": "Tea", "ctx_a": "He boils", "ctx_b": "water", "endings": ["a", "b"], "label": 1},
        {"activity_label": "Tea", "ctx_a": "He boils", "ctx_b": "water", "endings": ["a", "b"], "label": "1"},
    ),
    "hellaswag of llm-foundry": (
        "Rowan/hellaswag", None,
        {"query": "Tea: He boils: water", "choices": ["a", "b"], "gold": 1},
        {"activity_label": "Tea", "ctx_a": "He boils: water", "ctx_b": "", "endings": ["a", "b"], "label": "1"},
    ),
    "blimp": (
        "nyu-mll/blimp", "wh_island",
        {"sentence_good": "I go.", "sentence_bad": "I goes.", "UID": "wh_island", "lexically_identical": True},
        {"sentence_good": "I go.", "sentence_bad": "I goes."},
    ),
    "gsm8k": (
        "openai/gsm8k", "main",
        {"question": "1+1?", "answer": "#### 2"},
        {"question": "1+1?", "answer": "#### 2"},
    ),
}  # fmt: skip


def need(path: str, name: str | None, scored: str = "validation", shots: str | None = None) -> DataNeed:
    return DataNeed("the_task", path, name, scored, shots)


def write_rows(path: Path, *rows: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("form", FORMS)
def test_each_form_of_a_set_becomes_the_columns_that_the_harness_reads(form, tmp_path):
    path, name, row, columns = FORMS[form]
    file = write_rows(tmp_path / "rows.jsonl", row)
    data = read_local_data(need(path, name), {file: "validation"})
    assert data.splits == {"validation": [columns]}
    assert data.problems == []


def test_truthfulqa_has_mc1_and_mc2_built_from_the_columns_of_its_csv(tmp_path):
    file = write_rows(
        tmp_path / "TruthfulQA.csv",
        "Type,Category,Question,Best Answer,Correct Answers,Incorrect Answers,Source",
        'Adversarial,Myths,Is ice hot?,"No, it is not","No, it is not; Ice is cold.",Yes; Ice burns,https://a.b',
    )
    [row] = read_local_data(need("truthfulqa/truthful_qa", "multiple_choice"), {file: "validation"}).splits[
        "validation"
    ]
    assert row == {
        "question": "Is ice hot?",
        "mc1_targets": {"choices": ["No, it is not.", "Yes.", "Ice burns."], "labels": [1, 0, 0]},
        "mc2_targets": {"choices": ["No, it is not.", "Ice is cold.", "Yes.", "Ice burns."], "labels": [1, 1, 0, 0]},
    }


def test_mmlu_reads_its_csv_without_names_of_columns_and_dev_as_the_shots(tmp_path):
    for split, answer in (("dev", "A"), ("val", "B"), ("test", "D")):
        write_rows(tmp_path / "mmlu" / split / f"anatomy_{split}.csv", f'"What, then?",a,b,c,d,{answer}')
        write_rows(tmp_path / "mmlu" / split / f"virology_{split}.csv", f"Else?,a,b,c,d,{answer}")
    wanted = need("cais/mmlu", "anatomy", "test", "dev")
    files = find_data_files(wanted, None, tmp_path)
    assert files is not None
    data = read_local_data(wanted, files)
    row = {"question": "What, then?", "choices": ["a", "b", "c", "d"]}
    assert data.splits == {"test": [{**row, "answer": 3}], "dev": [{**row, "answer": 0}]}
    assert find_data_files(need("cais/mmlu", "astronomy", "test"), None, tmp_path) is None


@pytest.mark.parametrize("form", FORMS)
def test_a_missing_column_is_named_with_those_that_are_there(form, tmp_path):
    path, name, row, _ = FORMS[form]
    needed = {"gold", "answerKey", "label", "answer", "continuation", "sentence_bad"} & row.keys()
    column = sorted(needed)[0]
    file = write_rows(tmp_path / "rows.jsonl", {key: value for key, value in row.items() if key != column})
    expected = "label" if form == "boolq of its authors" else column
    with pytest.raises(NotRunError, match=f"the_task needs the column '{expected}'; .*rows.jsonl has "):
        read_local_data(need(path, name), {file: "validation"})


def test_rows_that_cannot_be_read_are_counted_with_an_example(tmp_path):
    path, name, row, columns = FORMS["arc of llm-foundry"]
    file = write_rows(tmp_path / "rows.jsonl", row, "{broken", {**row, "gold": 7}, {"query": "Question: ?"})
    data = read_local_data(need(path, name), {file: "validation"})
    assert data.splits == {"validation": [columns]}
    [problem] = data.problems
    assert problem.startswith(f"3 of 4 rows of {file} cannot be read and are left out: ")
    assert "'gold' is not the place of one of 2 choices" in problem and "no column 'choices'" in problem


def test_a_missing_split_is_named_with_its_remedy(tmp_path):
    row = FORMS["gsm8k"][2]
    file = write_rows(tmp_path / "gsm8k" / "test.jsonl", row)
    wanted = need("openai/gsm8k", "main", "test", "train")
    with pytest.raises(NotRunError, match=r"needs the split 'train', which its solved examples are from.*set shots: 0"):
        read_local_data(wanted, find_data_files(wanted, None, tmp_path) or {})
    with pytest.raises(NotRunError, match=r"needs the split 'validation', which it is scored on; .* has only test"):
        read_local_data(need("openai/gsm8k", "main"), {file: "test"})


def test_files_are_found_by_the_name_of_the_task_or_of_its_set(tmp_path):
    row = FORMS["arc of llm-foundry"][2]
    arc = DataNeed("arc_easy", "allenai/ai2_arc", "ARC-Easy", "test", None)
    assert find_data_files(arc, None, tmp_path) is None
    misc = write_rows(tmp_path / "misc" / "arc_easy.jsonl", row)
    assert find_data_files(arc, None, tmp_path) == {misc: "test"}
    top = write_rows(tmp_path / "ARC-Easy.jsonl", row)
    assert find_data_files(arc, None, tmp_path) == {top: "test"}  # before those in folders
    own = write_rows(tmp_path / "other" / "x-train.jsonl", row)
    assert find_data_files(arc, str(own), tmp_path) == {own: "test"}  # a single file is what is to be scored
    with pytest.raises(NotRunError, match="has no file of rows for arc_easy"):
        find_data_files(arc, str(own.parent), tmp_path)  # a folder without a file of ARC-Easy
    with pytest.raises(UserError, match="nowhere is not there"):
        find_data_files(arc, "nowhere", tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        find_data_files(arc, None, top)


@pytest.mark.skipif(not DATA, reason="HF_LLM_DATA is not set")
def test_every_set_of_the_real_data_is_found_and_read_by_its_task():
    tasks = (
        "hellaswag arc_easy piqa openbookqa copa boolq winogrande lambada_openai truthfulqa_mc1 truthfulqa_mc2 gsm8k"
    )
    expected = dict(zip(tasks.split(), (500, 500, 500, 200, 100, 200, 400, 500, 400, 400, 300), strict=True))
    expected |= dict.fromkeys(
        (
            "blimp_anaphor_gender_agreement",
            "blimp_determiner_noun_agreement_1",
            "blimp_npi_present_1",
            "blimp_wh_island",
        ),
        500,
    )
    expected |= {
        "mmlu_abstract_algebra": 100,
        "mmlu_anatomy": 135,
        "mmlu_college_computer_science": 100,
        "mmlu_global_facts": 100,
    }
    for name, count in expected.items():
        shots = 5 if name.startswith("mmlu") else None
        [benchmark] = find_benchmarks(TaskSettings(name, shots=shots), Path(DATA), False, False)
        assert benchmark.files, name
        data = read_local_data(benchmark.need, benchmark.files)
        assert len(data.splits[benchmark.need.scored_split]) == count, name
        assert data.problems == []
        if shots:
            assert len(data.splits["dev"]) == 5

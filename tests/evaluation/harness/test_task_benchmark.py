"""Tasks of the harness as benchmarks: scores equal to lm_eval's own evaluation, journal, intervals, refusals."""

import json
from functools import cache
from pathlib import Path

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from hf_llm.evaluation.benchmark import NotRunError, TaskSettings
from hf_llm.evaluation.evaluated_model import EvaluatedModel
from hf_llm.evaluation.harness.scoring import SharedPrefixLM
from hf_llm.evaluation.harness.task_files import find_tasks, resolve_functions
from hf_llm.evaluation.harness.tasks import find_benchmarks
from hf_llm.evaluation.intervals import wilson_interval
from hf_llm.evaluation.journal import Journal
from hf_llm.inference.generate import set_stop_tokens
from tests.tiny_models import tiny_model, tiny_tokenizer

THINGS = ("ice", "fire", "a very old stone", "tea", "the sea", "sand", "iron", "wool", "a leaf", "glass", "snow", "mud")
ANSWERS = ("cold", "hot", "hard and heavy", "sweet")


def question(place: int) -> str:
    return f"What can be said of {THINGS[place]}?"


def arc_rows() -> tuple[list, list]:
    local, hub = [], []
    for place in range(len(THINGS)):
        gold = place % 4
        local.append({"query": f"Question: {question(place)}", "choices": list(ANSWERS), "gold": gold})
        choices = {"text": list(ANSWERS), "label": list("ABCD")}
        hub.append({"question": question(place), "choices": choices, "answerKey": "ABCD"[gold]})
    return local, hub


def hellaswag_rows() -> tuple[list, list]:
    rows = [
        {
            "activity_label": "Telling",
            "ctx_a": f"He has {thing}.",
            "ctx_b": "it is",
            "endings": list(ANSWERS),
            "label": 1,
        }
        for thing in THINGS
    ]
    return rows, [{**row, "label": str(row["label"])} for row in rows]


def winogrande_rows() -> tuple[list, list]:
    local, hub = [], []
    for place, thing in enumerate(THINGS):
        contexts = [f"Ann gave Amy {thing} since {name}" for name in ("Ann", "Amy")]
        local.append({"context_options": contexts, "continuation": "asked for it.", "gold": place % 2})
        sentence = f"Ann gave Amy {thing} since _ asked for it."
        hub.append({"sentence": sentence, "option1": "Ann", "option2": "Amy", "answer": str(place % 2 + 1)})
    return local, hub


def lambada_rows() -> tuple[list, list]:
    local = [{"context": f"She spoke of {thing} and\nthen of the", "continuation": "end"} for thing in THINGS]
    return local, [{"text": f"{row['context']} end"} for row in local]


def truthfulqa_rows() -> tuple[list, list]:
    local, hub = [], []
    for place in range(len(THINGS)):
        correct = f"Much; {ANSWERS[place % 4]}"
        local.append(
            {
                "Question": question(place), "Best Answer": "Much",
                "Correct Answers": correct, "Incorrect Answers": "Nothing; No",
                "Type": "", "Category": "", "Source": "",
            }
        )  # fmt: skip
        mc1 = {"choices": ["Much.", "Nothing.", "No."], "labels": [1, 0, 0]}
        mc2 = {"choices": ["Much.", f"{ANSWERS[place % 4]}.", "Nothing.", "No."], "labels": [1, 1, 0, 0]}
        hub.append({"question": question(place), "mc1_targets": mc1, "mc2_targets": mc2})
    return local, hub


def blimp_rows() -> tuple[list, list]:
    rows = [{"sentence_good": f"I see {thing}.", "sentence_bad": f"I sees {thing}."} for thing in THINGS]
    return rows, rows


def gsm8k_rows() -> tuple[list, list]:
    rows = [{"question": f"What is {place} and 1?", "answer": f"It is\n#### {place + 1}"} for place in range(12)]
    return rows, rows


# Task -> rows as they lie around and as the Hub has them; the folder of the first; shots, other settings.
TASKS = {
    "arc_easy": (arc_rows, "misc/arc_easy.jsonl", {}),
    "hellaswag": (hellaswag_rows, "hellaswag/hellaswag_val.jsonl", {}),
    "winogrande": (winogrande_rows, "misc/winogrande.jsonl", {}),
    "lambada_openai": (lambada_rows, "misc/lambada_openai.jsonl", {}),
    "truthfulqa_mc1": (truthfulqa_rows, "truthfulqa/TruthfulQA.jsonl", {}),
    "truthfulqa_mc2": (truthfulqa_rows, "truthfulqa/TruthfulQA.jsonl", {}),
    "blimp_wh_island": (blimp_rows, "blimp/wh_island.jsonl", {}),
    "gsm8k": (gsm8k_rows, "gsm8k/test.jsonl", {"shots": 2, "gen_kwargs": {"max_gen_toks": 24}}),
}


def write_rows(path: Path, rows: list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@cache
def load_tiny() -> tuple:
    tokenizer = tiny_tokenizer()
    return set_stop_tokens(tiny_model(max_position_embeddings=1536), tokenizer), tokenizer


@pytest.fixture
def evaluated():
    """A model under evaluation that is in memory already."""
    return make_evaluated()


def make_evaluated(rank: int = 0, world_size: int = 1) -> EvaluatedModel:
    evaluated = EvaluatedModel("tiny", "tiny", rank, world_size)
    evaluated.__dict__["model"], evaluated.__dict__["tokenizer"] = load_tiny()
    return evaluated


def find_one(name: str, task_data: Path, **settings):
    [benchmark] = find_benchmarks(TaskSettings(name, **settings), task_data, False, False)
    return benchmark


def score(benchmark, evaluated: EvaluatedModel, folder: Path) -> list[dict]:
    journal = Journal(folder, evaluated.rank, evaluated.world_size)
    benchmark.score_documents(evaluated, journal)
    return journal.read()


def evaluate_by_lm_eval(name: str, splits: dict[str, Path], lm, shots: int | None = None, gen_kwargs=None) -> dict:
    """The harness's own results of a task on rows as the Hub has them."""
    [source] = find_tasks(name)
    config = resolve_functions(source.read_config())
    for key in ("training_split", "validation_split", "test_split", "fewshot_split"):
        if config.get(key) not in splits:
            config.pop(key, None)
    files = {split: str(path) for split, path in splits.items()}
    config |= {"dataset_path": "json", "dataset_kwargs": {"data_files": files}}
    config.pop("dataset_name", None)
    results = lm_eval.simple_evaluate(
        model=lm,
        tasks=[config],
        num_fewshot=shots,
        gen_kwargs=gen_kwargs,
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    return {key: value for key, value in results["results"][name].items() if "," in key and "stderr" not in key}


@pytest.mark.parametrize("name", TASKS)
def test_scores_equal_those_of_lm_eval_on_the_same_rows(name, evaluated, tmp_path):
    make_rows, place, settings = TASKS[name]
    local, hub = make_rows()
    write_rows(tmp_path / place, local)
    benchmark = find_one(name, tmp_path, **settings)
    splits = {benchmark.need.scored_split: write_rows(tmp_path / "hub.jsonl", hub)}
    if benchmark.need.shot_split:
        write_rows((tmp_path / place).with_name("train.jsonl"), local[::-1])
        splits["train"] = write_rows(tmp_path / "hub-train.jsonl", hub[::-1])
        benchmark = find_one(name, tmp_path, **settings)

    rows = score(benchmark, evaluated, tmp_path / "journal")
    lm = HFLM(pretrained=evaluated.model, tokenizer=evaluated.tokenizer, batch_size=4)
    theirs = evaluate_by_lm_eval(name, splits, lm, settings.get("shots"), settings.get("gen_kwargs"))
    ours = {score.metric: score.value for score in benchmark.summarize(rows)}
    expected = {key.removesuffix(",none"): value for key, value in theirs.items()}
    expected = {f"{key.replace(',', ' (')})" if "," in key else key: value for key, value in expected.items()}
    assert ours == pytest.approx(expected, rel=1e-4)
    assert [row["id"] for row in rows] == [str(number) for number in range(12)]


def test_mmlu_with_shots_equals_lm_eval_and_its_shots_run_once(evaluated, tmp_path):
    splits = {}
    for split in ("dev", "test"):
        lines = [f'"{question(place)}",w,x,y,z,{"ABCD"[place % 4]}' for place in range(12 if split == "test" else 3)]
        path = tmp_path / "mmlu" / split / f"anatomy_{split}.csv"
        path.parent.mkdir(parents=True)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        hub = [{"question": question(n), "choices": list("wxyz"), "answer": n % 4} for n in range(len(lines))]
        splits[split] = write_rows(tmp_path / f"{split}.jsonl", hub)
    benchmark = find_one("mmlu_anatomy", tmp_path, shots=3)
    rows = score(benchmark, evaluated, tmp_path / "journal")
    lm = HFLM(pretrained=evaluated.model, tokenizer=evaluated.tokenizer, batch_size=4)
    theirs = evaluate_by_lm_eval("mmlu_anatomy", splits, lm, 3)
    [accuracy] = benchmark.summarize(rows)
    assert (accuracy.metric, accuracy.value) == ("acc", theirs["acc,none"])
    assert accuracy.chance == 0.25 and accuracy.majority == 0.25


def test_simple_evaluate_takes_the_faster_class_too(evaluated, tmp_path):
    path = write_rows(tmp_path / "hub.jsonl", arc_rows()[1])
    fast = evaluate_by_lm_eval("arc_easy", {"test": path}, SharedPrefixLM(evaluated.model, evaluated.tokenizer))
    slow = evaluate_by_lm_eval(
        "arc_easy", {"test": path}, HFLM(pretrained=evaluated.model, tokenizer=evaluated.tokenizer)
    )
    assert fast == slow


def test_a_row_has_prompt_response_target_and_scores(evaluated, tmp_path):
    write_rows(tmp_path / "arc_easy.jsonl", arc_rows()[0])
    [row, *_] = score(find_one("arc_easy", tmp_path, limit=3), evaluated, tmp_path / "journal")
    assert row["prompt"] == "Question: What can be said of ice?\nAnswer:"
    assert row["target"] == " cold"
    assert row["response"] in row["options"] and len(row["log_likelihoods"]) == 4
    assert row["scores"].keys() == {"acc", "acc_norm"}


@pytest.mark.parametrize("batch_size", [1, 16])
def test_scores_are_the_same_at_any_batch_size_and_on_two_processes(batch_size, evaluated, tmp_path):
    write_rows(tmp_path / "hellaswag.jsonl", hellaswag_rows()[0])
    whole = score(find_one("hellaswag", tmp_path), evaluated, tmp_path / "whole")
    journals = [Journal(tmp_path / "shared", rank, 2) for rank in range(2)]  # both begin before either has scored
    for rank, journal in enumerate(journals):
        benchmark = find_one("hellaswag", tmp_path)
        benchmark.batch_size = batch_size
        benchmark.score_documents(make_evaluated(rank, 2), journal)
        assert len(journal.path.read_text(encoding="utf-8").splitlines()) == 6
    rows = journals[0].read()
    assert [row["id"] for row in rows] == [row["id"] for row in whole]
    for row, other in zip(rows, whole, strict=True):
        assert row["log_likelihoods"] == pytest.approx(other["log_likelihoods"], abs=1e-4)
        assert row["response"] == other["response"]


@pytest.mark.parametrize("name", ["hellaswag", "gsm8k"])
def test_a_killed_evaluation_redoes_at_most_one_batch(name, evaluated, tmp_path):
    make_rows, place, settings = TASKS[name]
    write_rows(tmp_path / place, make_rows()[0])
    write_rows(tmp_path / "gsm8k" / "train.jsonl", gsm8k_rows()[0][::-1])
    whole = score(find_one(name, tmp_path, **settings), evaluated, tmp_path / "whole")

    class Killed(BaseException):
        pass

    class MortalJournal(Journal):
        batches = 0

        def append(self, rows):
            if self.batches == 3:
                with open(self.path, "a", encoding="utf-8") as file:
                    file.write('{"id": "torn')  # the batch was being written
                raise Killed
            self.batches += 1
            super().append(rows)

    benchmark = find_one(name, tmp_path, **settings)
    benchmark.batch_size = 2
    with pytest.raises(Killed):
        benchmark.score_documents(evaluated, MortalJournal(tmp_path / "journal"))
    journal = Journal(tmp_path / "journal")
    assert 3 <= len(journal.finished) <= 6  # three batches
    again = find_one(name, tmp_path, **settings)
    again.score_documents(evaluated, journal)
    lines = journal.path.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 12  # none is scored twice
    texts = [(row["id"], row["prompt"], row["response"]) for row in journal.read()]
    assert texts == [(row["id"], row["prompt"], row["response"]) for row in whole]


def test_both_prompt_formats_are_two_benchmarks(evaluated, tmp_path):
    write_rows(tmp_path / "arc_easy.jsonl", arc_rows()[0])
    settings = TaskSettings("arc_easy", prompt_format="both", limit=2)
    plain, chat = find_benchmarks(settings, tmp_path, False, False)
    assert (plain.name, chat.name) == ("arc_easy", "arc_easy (chat)")
    assert plain.identify() != chat.identify()
    [row, _] = score(chat, evaluated, tmp_path / "chat")
    expected = "<|im_start|>user\nQuestion: What can be said of ice?\nAnswer:<|im_end|>\n<|im_start|>assistant\n"
    assert row["prompt"] == expected and row["target"] == "cold"
    [automatic] = find_benchmarks(TaskSettings("arc_easy"), tmp_path, False, True)
    assert automatic.settings["prompt_format"] == "chat" and automatic.name == "arc_easy"


def test_a_prompt_longer_than_the_context_is_counted_and_an_answer_longer_than_it_is_named(tmp_path):
    evaluated = EvaluatedModel("short", "short")
    evaluated.__dict__["model"], evaluated.__dict__["tokenizer"] = (
        tiny_model(max_position_embeddings=40),
        tiny_tokenizer(),
    )
    rows = arc_rows()[0]
    rows[3]["choices"] = ["x" * 60, *ANSWERS[1:]]
    write_rows(tmp_path / "arc_easy.jsonl", rows)
    benchmark = find_one("arc_easy", tmp_path)
    journal_rows = score(benchmark, evaluated, tmp_path / "journal")
    said = "\n".join(benchmark.describe_documents(journal_rows))
    assert "11 of 12 documents are longer than the model reads and lost a beginning" in said
    assert f"1 of 12 documents are not scored: document 3: {' ' + 'x' * 59!r} has 61 tokens; the model reads 40" in said
    primary, *_ = benchmark.summarize(journal_rows)
    assert primary.documents == 11
    assert (primary.low, primary.high) == wilson_interval(round(primary.value * 11), 11)  # of a share, not resampled


def test_identity_changes_with_rows_shots_limit_and_settings_alone(tmp_path):
    path = write_rows(tmp_path / "arc_easy.jsonl", arc_rows()[0])
    first = find_one("arc_easy", tmp_path).identify()
    assert find_one("arc_easy", tmp_path).identify() == first
    assert find_one("arc_easy", tmp_path, limit=5).identify() != first
    write_rows(path, arc_rows()[0][:5])
    assert find_one("arc_easy", tmp_path).identify() != first


def test_a_group_scores_the_tasks_that_are_there_and_names_the_others(evaluated, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_rows(tmp_path / "blimp" / "wh_island.jsonl", blimp_rows()[0])
    benchmarks = {item.name: item for item in find_benchmarks(TaskSettings("blimp"), tmp_path, False, False)}
    assert len(benchmarks) == 67 and {item.group for item in benchmarks.values()} == {"blimp"}
    assert len(score(benchmarks["blimp_wh_island"], evaluated, tmp_path / "journal")) == 12
    with pytest.raises(NotRunError, match=r"cannot be read from the Hub.*a folder blimp/ of evaluate.task_data"):
        score(benchmarks["blimp_npi_present_1"], evaluated, tmp_path / "other")


def test_a_users_own_task_file_is_scored(evaluated, tmp_path):
    rows = write_rows(tmp_path / "own.jsonl", [{"q": thing, "a": "cold"} for thing in THINGS])
    (tmp_path / "own.py").write_text("def ask(row):\n    return f'Is {row[\"q\"]} cold?'\n", encoding="utf-8")
    (tmp_path / "own.yaml").write_text(
        "task: own_task\ndataset_path: json\ntest_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: !function own.ask\ndoc_to_target: a\ndoc_to_choice: [cold, hot]\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n",
        encoding="utf-8",
    )
    [benchmark] = find_benchmarks(TaskSettings(str(tmp_path / "own.yaml"), data=str(rows)), None, False, False)
    assert (benchmark.name, benchmark.group) == ("own_task", "")
    [row, *_] = score(benchmark, evaluated, tmp_path / "journal")
    assert (row["prompt"], row["target"]) == ("Is ice cold?", " cold")
    identity = benchmark.identify()
    (tmp_path / "own.py").write_text("def ask(row):\n    return row['q']\n", encoding="utf-8")
    assert benchmark.identify() != identity
    texts = dict(benchmark.read_texts())
    assert texts["0"] == ["Is ice cold?", "cold"]


def test_a_column_that_a_template_names_and_the_rows_lack_is_named(evaluated, tmp_path):
    rows = write_rows(tmp_path / "own.jsonl", [{"q": "a"}])
    (tmp_path / "own.yaml").write_text(
        "task: own_task\ndataset_path: json\ntest_split: test\noutput_type: loglikelihood\n"
        "doc_to_text: '{{question}}'\ndoc_to_target: '{{q}}'\nmetric_list: [{metric: acc, aggregation: mean}]\n",
        encoding="utf-8",
    )
    [benchmark] = find_benchmarks(TaskSettings(str(tmp_path / "own.yaml"), data=str(rows)), None, False, False)
    with pytest.raises(NotRunError, match="own_task needs a column that its rows lack: 'question' is undefined"):
        score(benchmark, evaluated, tmp_path / "journal")


def test_tasks_that_run_code_and_models_that_restore_text_are_refused(tmp_path):
    benchmark = find_one("humaneval_instruct", tmp_path)
    with pytest.raises(NotRunError, match="runs generated code in this process"):
        benchmark.identify()


def test_a_task_that_has_no_shots_says_that_it_ignores_them(tmp_path, capfd):
    write_rows(tmp_path / "truthfulqa" / "TruthfulQA.jsonl", truthfulqa_rows()[0])
    assert find_one("truthfulqa_mc1", tmp_path, shots=5).settings["shots"] == 0
    assert "shots: 5 is ignored" in capfd.readouterr().out


def test_chance_counts_the_right_choices_and_majority_only_labels_that_vary(evaluated, tmp_path):
    write_rows(tmp_path / "truthfulqa" / "TruthfulQA.jsonl", truthfulqa_rows()[0])
    write_rows(tmp_path / "misc" / "winogrande.jsonl", winogrande_rows()[0][:9])
    for name, chance, majority in (
        ("truthfulqa_mc1", 1 / 3, None),
        ("truthfulqa_mc2", 0.5, None),
        ("winogrande", 0.5, 5 / 9),
    ):
        benchmark = find_one(name, tmp_path)
        [accuracy] = benchmark.summarize(score(benchmark, evaluated, tmp_path / name))
        assert (accuracy.chance, accuracy.majority) == (pytest.approx(chance), majority)
        assert accuracy.is_primary


def test_perplexity_has_a_bootstrapped_interval_and_is_better_when_lower(evaluated, tmp_path):
    write_rows(tmp_path / "lambada_openai.jsonl", lambada_rows()[0])
    benchmark = find_one("lambada_openai", tmp_path)
    accuracy, perplexity = benchmark.summarize(score(benchmark, evaluated, tmp_path / "journal"))
    assert (accuracy.metric, perplexity.metric) == ("acc", "perplexity")
    assert perplexity.better == "lower" and perplexity.low < perplexity.value < perplexity.high

"""HumanEval and MBPP from their files to scores, with a model that knows the answers to some problems by heart."""

import gzip
import json
from dataclasses import replace

import pytest
import torch

from hf_llm.core.errors import UserError
from hf_llm.evaluation.benchmark import NotRunError, TaskSettings
from hf_llm.evaluation.benchmark_families import find_benchmarks
from hf_llm.evaluation.code import problems as problems_module
from hf_llm.evaluation.code.code_benchmark import CodeBenchmark, describe_rows
from hf_llm.evaluation.code.completion_settings import read_completion_settings
from hf_llm.evaluation.code.problem_sets import HUMAN_EVAL_REQUEST, read_human_eval, read_mbpp
from hf_llm.evaluation.code.sandbox import Limits, open_sandbox
from hf_llm.evaluation.evaluated_model import EvaluatedModel
from hf_llm.evaluation.journal import Journal
from hf_llm.inference.generate import set_stop_tokens
from hf_llm.tokenization.chat_encoding import encode_chat
from tests.evaluation.code.human_eval import DATA, HUMAN_EVAL, read_problems
from tests.tiny_models import tiny_model, tiny_tokenizer

# Problems in HumanEval's form, and what the model below has been trained to complete each with.
PROMPTS = {
    0: ("import math\n\ndef root(x):\n", "root", "assert candidate(4) == 2\n    assert candidate(9) == 3"),
    1: ("def double(x):\n", "double", "assert candidate(4) == 8\n    assert candidate(5) == 10"),
    2: ("def spin(x):\n", "spin", "assert candidate(1) == 1"),
    10: ("def helper(x):\n    return x\n\ndef last(xs):\n", "last", "assert candidate([1, 2]) == helper(2)"),
}
LEARNED = {
    0: "    return math.sqrt(x)\n",
    1: "    return x + 4\n",  # wrong for 5
    2: "    while True: pass\n",
    10: "    return xs[-1]\n",
}
OUTCOMES = {"0": "passed", "1": "failed", "2": "timeout", "10": "passed"}

MBPP_ROWS = [
    {
        "task_id": number,
        "text": f"Write a function to add {number}.",
        "code": f"def add{number}(x):\r\n    return x + {number}\r\n",
        "test_list": [f"assert add{number}({x}) == {x + number}" for x in (1, 2, 3)],
        "test_setup_code": "",
    }
    for number in (1, 2, 3, 4, 11, 12, 600)
]


def human_eval_rows() -> list[dict]:
    return [
        {
            "task_id": f"HumanEval/{number}",
            "prompt": prompt,
            "entry_point": name,
            "canonical_solution": LEARNED[number],
            "test": f"\n\nMETADATA = {{}}\n\n\ndef check(candidate):\n    {tests}\n",
        }
        for number, (prompt, name, tests) in PROMPTS.items()
    ]


def write_rows(path, rows: list[dict]):
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
    return path


def find(task: TaskSettings, task_data=None, is_chat: bool = False) -> CodeBenchmark:
    (benchmark,) = find_benchmarks(task, task_data, True, is_chat)
    assert isinstance(benchmark, CodeBenchmark)
    benchmark.sandbox = replace(benchmark.sandbox, limits=Limits(cpu_seconds=1))
    return benchmark


def score(benchmark: CodeBenchmark, model: EvaluatedModel, folder) -> list[dict]:
    """Score the documents, and return the rows of the journal."""
    benchmark.score_documents(model, Journal(folder))
    return Journal(folder).read()


@pytest.fixture(scope="module", autouse=True)
def _needs_a_sandbox():
    try:
        open_sandbox()
    except UserError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def human_eval_file(tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("data") / "HumanEval.jsonl.gz", human_eval_rows())


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> EvaluatedModel:
    """A tiny model that has been trained to complete each prompt, and to answer each request, as `LEARNED` says."""
    tokenizer = tiny_tokenizer()
    network = set_stop_tokens(tiny_model(max_position_embeddings=384, initializer_range=0.05), tokenizer)
    texts = []
    for number, (prompt, _, _) in PROMPTS.items():
        texts.append(tokenizer(prompt + LEARNED[number] + "def more():\n    return more\n")["input_ids"])
        reply = f"So:\n```python\n{LEARNED[number]}```"
        request = HUMAN_EVAL_REQUEST.format(prompt=prompt.rstrip())
        turns = [{"role": "user", "content": request}, {"role": "assistant", "content": reply}]
        texts.append(encode_chat(tokenizer, turns)[0])
    length = max(map(len, texts))
    ids = torch.full((len(texts), length), 256)
    labels = torch.full((len(texts), length), -100)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = labels[row, : len(text)] = torch.tensor(text)

    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    network.train()
    for _ in range(200):
        loss = network(input_ids=ids, labels=labels, attention_mask=ids.ne(256).long()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss < 0.02:
            break
    assert loss < 0.1
    folder = tmp_path_factory.mktemp("model")
    network.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return EvaluatedModel("tiny", folder)


# ---- before anything is generated


def test_generated_code_is_run_only_where_it_is_asked_for(human_eval_file):
    with pytest.raises(UserError, match=r"evaluate\.run_generated_code: true"):
        find_benchmarks(TaskSettings("humaneval", data=str(human_eval_file)), None, False, False)


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_nothing_begins_without_bubblewrap(tmp_path, monkeypatch, human_eval_file, name):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt install bubblewrap"):
        find_benchmarks(TaskSettings(name, data=str(human_eval_file)), None, True, False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl does not exist"),
        ({"shots": 2}, "leave shots out"),
        ({"gen_kwargs": {"temprature": 1}}, "did you mean temperature"),
        ({"gen_kwargs": {"max_gen_toks": 0}}, "whole number from 1"),
        ({"gen_kwargs": {"until": [1]}}, "not a list of texts"),
        ({"gen_kwargs": {"temperature": -1}}, "a number from 0"),
        ({"samples": 5, "gen_kwargs": {"temperature": 0}}, "5 times the same"),
        ({"samples": 5, "gen_kwargs": {"do_sample": False}}, "5 times the same"),
    ],
)
def test_a_wrong_setting_is_refused(human_eval_file, changes, message):
    settings = {"name": "humaneval", "data": str(human_eval_file), **changes}
    with pytest.raises(UserError, match=message):
        find(TaskSettings(**settings))


@pytest.mark.parametrize(
    ("samples", "gen_kwargs", "described"),
    [
        (1, {}, "greedy"),
        (10, {}, "sampled, temperature 0.8, top_p 0.95, top_k 0, seed 0"),
        (1, {"temperature": 0.5}, "sampled, temperature 0.5, top_p 0.95, top_k 0, seed 0"),
        (1, {"temperature": 0.5, "do_sample": False}, "greedy"),
        (10, {"temperature": 1, "top_p": 1.0}, "sampled, temperature 1.0, top_p 1.0, top_k 0, seed 0"),
    ],
)
def test_one_sample_is_greedy_and_several_are_drawn(samples, gen_kwargs, described):
    task = TaskSettings("humaneval", samples=samples, gen_kwargs=gen_kwargs)
    assert read_completion_settings(task, []).describe() == described


# ---- rows


def test_rows_come_from_a_file_a_folder_or_the_folder_of_task_data(tmp_path, human_eval_file):
    write_rows(tmp_path / "humaneval" / "rows.jsonl", human_eval_rows())
    given = find(TaskSettings("humaneval", data=str(human_eval_file)))
    in_folder = find(TaskSettings("humaneval"), tmp_path)
    assert given.problems == in_folder.problems and list(given.problems) == ["0", "1", "2", "10"]
    assert given.settings["data"] == str(human_eval_file)
    assert given.identify() == in_folder.identify()
    assert list(find(TaskSettings("humaneval", data=str(human_eval_file), limit=2)).problems) == ["0", "1"]


def test_rows_that_cannot_be_had_are_not_run(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(NotRunError, match=r"folder mbpp of evaluate\.task_data"):
        problems_module.read_problems(TaskSettings("mbpp"), None, 3)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"test": None}, NotRunError, "row 1: there is no column test, only task_id"),
        ({"prompt": ["a"]}, NotRunError, "prompt is not a text"),
        ({"test": "def check(:"}, UserError, "cannot parse its tests"),
        ({"task_id": "HumanEval/1"}, UserError, "second row with task_id 1"),
    ],
)
def test_a_row_that_is_not_a_problem_is_named(tmp_path, change, error, message):
    rows = human_eval_rows()
    rows[0] |= change
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(error, match=message):
        read_human_eval(path)


def test_a_broken_file_is_refused(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", human_eval_rows())
    path.write_text(path.read_text() + '{"task_id": \n')
    with pytest.raises(UserError, match="cannot be read"):
        read_human_eval(path)


def test_mbpp_has_three_solved_examples_and_the_rows_of_its_test_split(tmp_path):
    path = write_rows(tmp_path / "mbpp.jsonl", MBPP_ROWS)
    _, problems = read_mbpp(path, 3)
    assert [problem.id for problem in problems] == ["11", "12"]
    prompt = problems[0].plain_prompt
    assert prompt.count("[DONE]") == 3 and prompt.endswith("assert add11(3) == 14\n[BEGIN]\n")
    assert [prompt.index(f"def add{n}(x):\n    return x + {n}\n[DONE]\n") for n in (2, 3, 4)] == sorted(
        prompt.index(f"def add{n}(") for n in (2, 3, 4)
    )
    assert "[BEGIN]" not in problems[0].request and "add11(3) == 14" in problems[0].request
    assert read_mbpp(path, 0)[1][0].plain_prompt.count("[BEGIN]") == 1


def test_mbpp_without_its_solved_examples_is_not_run(tmp_path):
    path = write_rows(tmp_path / "mbpp.jsonl", MBPP_ROWS[4:])
    with pytest.raises(NotRunError, match=r"task_id 2, 3, 4.*shots: 0"):
        read_mbpp(path, 3)
    assert len(read_mbpp(path, 0)[1]) == 2


def test_rows_outside_of_the_test_split_are_taken_where_there_are_no_others(tmp_path):
    path = write_rows(tmp_path / "mine.jsonl", [row for row in MBPP_ROWS if row["task_id"] not in (11, 12)])
    assert [problem.id for problem in read_mbpp(path, 3)[1]] == ["1", "600"]


def test_mbpps_solutions_pass_with_set_up_code_that_uses_them(tmp_path):
    rows = [*MBPP_ROWS]
    rows[4] = {
        "task_id": 11,
        "prompt": "Write a function to read a node.",
        "code": "class Node:\n    def __init__(self, data): self.data = data\ndef read(node):\n    return node.data",
        "test_list": ["assert read(root) == 5 and math.pi > 3", "assert read(Node('a')) == 'a'"],
        "test_setup_code": "root = Node(5)",
        "test_imports": ["import math"],
    }
    benchmark = find(TaskSettings("mbpp", data=str(write_rows(tmp_path / "mbpp.jsonl", rows))))
    programs = [(benchmark.build_program(problem, problem.solution), problem.tests) for problem in
                benchmark.problems.values()]  # fmt: skip
    assert [result.outcome for result in benchmark.sandbox.check_programs(programs)] == ["passed", "passed"]


# ---- from a model to scores


def test_a_base_models_completions_are_run(model, human_eval_file, tmp_path):
    benchmark = find(TaskSettings("humaneval", data=str(human_eval_file)))
    rows = score(benchmark, model, tmp_path)
    assert {row["id"]: row["completions"][0]["outcome"] for row in rows} == OUTCOMES
    assert [row["id"] for row in rows] == ["0", "1", "2", "10"]
    assert rows[0]["prompt"] == PROMPTS[0][0]
    assert rows[0]["response"] == LEARNED[0].rstrip("\n")  # cut where the next function begins
    assert rows[0]["scores"] == {"pass@1": 1.0} and rows[1]["scores"] == {"pass@1": 0.0}
    assert rows[1]["completions"][0]["detail"].startswith("AssertionError")

    (scored,) = benchmark.summarize(rows)
    assert scored.metric == "pass@1" and scored.value == 0.5 and scored.documents == 4 and scored.is_primary
    assert 0 < scored.low < 0.5 < scored.high and not scored.is_at_chance
    assert benchmark.summarize([rows[1]])[0].is_at_chance
    (said,) = benchmark.describe_documents(rows)
    assert said.startswith("4 programs: 2 passed, 1 failed, 1 timeout")
    assert benchmark.settings["max_new_tokens"] == 192 and benchmark.settings["prompt_format"] == "plain"
    assert dict(benchmark.read_texts())["1"] == [PROMPTS[1][0], PROMPTS[1][0] + LEARNED[1]]


def test_a_chat_models_replies_are_run(model, human_eval_file, tmp_path):
    benchmark = find(TaskSettings("humaneval", data=str(human_eval_file)), is_chat=True)
    rows = score(benchmark, model, tmp_path)
    assert {row["id"]: row["completions"][0]["outcome"] for row in rows} == OUTCOMES
    assert rows[0]["response"] == f"So:\n```python\n{LEARNED[0]}```"


def test_both_prompt_formats_are_two_benchmarks(human_eval_file):
    task = TaskSettings("humaneval", data=str(human_eval_file), prompt_format="both")
    plain, chat = find_benchmarks(task, None, True, False)
    assert (plain.name, chat.name) == ("humaneval", "humaneval (chat)")
    assert plain.identify() != chat.identify()


def test_a_half_written_journal_is_continued(model, human_eval_file, tmp_path):
    benchmark = find(TaskSettings("humaneval", data=str(human_eval_file)))
    whole = score(benchmark, model, tmp_path / "whole")
    half = tmp_path / "half"
    half.mkdir()
    lines = (tmp_path / "whole" / "documents.0.jsonl").read_text().splitlines(keepends=True)
    marked = json.loads(lines[0]) | {"response": "scored before"}
    (half / "documents.0.jsonl").write_text(json.dumps(marked) + "\n" + lines[1] + lines[2][:40])
    resumed = score(benchmark, model, half)
    assert resumed[0]["response"] == "scored before"
    assert resumed[1:] == whole[1:]


def test_samples_are_the_same_in_any_batch_and_process(model, tmp_path):
    easy = [row for row in human_eval_rows() if row["entry_point"] != "spin"]
    file = write_rows(tmp_path / "rows.jsonl", easy)
    task = TaskSettings("humaneval", data=str(file), samples=10, gen_kwargs={"max_gen_toks": 40, "temperature": 1.5})
    benchmark = find(task)
    alone = score(benchmark, model, tmp_path / "alone")
    for journal in [Journal(tmp_path / "shared", rank, 2) for rank in (0, 1)]:
        benchmark.score_documents(model, journal)
    assert Journal(tmp_path / "shared").read() == alone
    texts = {entry["text"] for entry in alone[0]["completions"]}
    assert len(alone[0]["completions"]) == 10 and len(texts) > 1

    one, ten = benchmark.summarize(alone)
    assert (one.metric, ten.metric) == ("pass@1", "pass@10")
    assert one.is_primary and not ten.is_primary and one.value <= ten.value
    assert 0 < one.value < 1
    for row in alone:
        passed = sum(entry["outcome"] == "passed" for entry in row["completions"])
        assert row["scores"] == {"pass@1": pytest.approx(passed / 10), "pass@10": float(passed > 0)}


def test_a_prompt_too_long_for_the_context_is_cut_and_counted(model, tmp_path, capsys):
    rows = human_eval_rows()[1:2]
    rows[0]["prompt"] = "# " + "x" * 300 + "\n" + rows[0]["prompt"]
    benchmark = find(TaskSettings("humaneval", data=str(write_rows(tmp_path / "rows.jsonl", rows))))
    (row,) = score(benchmark, model, tmp_path / "journal")
    assert row["cut_tokens"] == len(rows[0]["prompt"]) - 192
    assert "1 of 1 prompts lost their beginning" in describe_rows([row])
    assert "at most 192 tokens, and not 512" in capsys.readouterr().out


def test_a_model_without_a_template_or_that_fills_gaps_is_not_run(human_eval_file, tmp_path):
    from transformers import BertConfig, BertForMaskedLM

    base = tmp_path / "base"
    tiny_model().save_pretrained(base)
    tiny_tokenizer(chat=False).save_pretrained(base)
    chat = find(TaskSettings("humaneval", data=str(human_eval_file), prompt_format="chat"))
    with pytest.raises(NotRunError, match="has no chat template"):
        score(chat, EvaluatedModel("base", base), tmp_path / "journal")

    bert = tmp_path / "bert"
    config = BertConfig(vocab_size=320, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                        intermediate_size=32, max_position_embeddings=64)  # fmt: skip
    BertForMaskedLM(config).save_pretrained(bert)
    tiny_tokenizer(chat=False).save_pretrained(bert)
    plain = find(TaskSettings("humaneval", data=str(human_eval_file)))
    with pytest.raises(NotRunError, match="continues text"):
        score(plain, EvaluatedModel("bert", bert), tmp_path / "journal")


# ---- HumanEval itself


@pytest.mark.skipif(not DATA, reason="HF_LLM_DATA is not set")
@pytest.mark.parametrize("part", [slice(3, None, 8), pytest.param(slice(None), marks=pytest.mark.slow)],
                         ids=["sample", "all"])  # fmt: skip
@pytest.mark.parametrize("form", ["completion", "whole function", "body"])
def test_human_evals_solutions_pass_in_every_form(part, form):
    rows = read_problems()[part]
    benchmark = find(TaskSettings("humaneval", data=str(HUMAN_EVAL)), is_chat=form != "completion")
    programs = []
    for row in rows:
        problem = benchmark.problems[row["task_id"].partition("/")[2]]
        text = row["canonical_solution"]
        if form == "whole function":
            text = f"Here:\n\n```python\n{problem.solution}```\n"
        elif form == "body":
            text = f"```python\n{text}```"
        programs.append((benchmark.build_program(problem, text), problem.tests))
    results = benchmark.sandbox.check_programs(programs)
    assert {row["task_id"]: r.outcome for row, r in zip(rows, results, strict=True) if r.outcome != "passed"} == {}

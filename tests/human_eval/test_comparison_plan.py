import json
from collections import Counter
from pathlib import Path

import pytest

from hf_llm.core.errors import UserError
from hf_llm.human_eval.comparison_plan import (
    _load_stage_prompts,
    collect_held_out_prompts,
    describe_models,
    draw_pairs,
    plan_from_answers_file,
    read_prompts_file,
)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def prompt_texts(prompts):
    return [prompt[-1]["content"] for prompt in prompts]


@pytest.mark.parametrize(("prompts", "models"), [(40, 2), (60, 3), (50, 5), (4, 4), (1, 3)])
def test_every_two_models_meet_equally_often_and_no_pair_twice(prompts, models):
    names = [str(n) for n in range(models)]
    pairs = draw_pairs(prompts, names, seed=1)
    meetings = Counter((one, other) for _, one, other in pairs)
    combinations = models * (models - 1) // 2
    assert len(meetings) == combinations
    assert len(set(pairs)) == len(pairs) == max(prompts, combinations)
    assert max(meetings.values()) - min(meetings.values()) <= 1
    assert {prompt for prompt, _, _ in pairs} == set(range(prompts))


def test_the_order_follows_the_seed():
    assert draw_pairs(30, ["x", "y"], 1) == draw_pairs(30, ["x", "y"], 1) != draw_pairs(30, ["x", "y"], 2)


def test_answers_come_from_a_file_under_the_names_of_their_models(tmp_path):
    rows = [{"prompt": f"q{n}", "ours": f"o{n}", "gpt2": "half \ud800 pair"} for n in range(3)]
    plan = plan_from_answers_file(write_rows(tmp_path / "answers.jsonl", rows), seed=1)
    assert list(plan.models) == ["ours", "gpt2"]
    assert plan.answers["ours"] == {0: "o0", 1: "o1", 2: "o2"}
    assert plan.answers["gpt2"][0] == "half \ufffd pair"
    assert prompt_texts(plan.prompts) == ["q0", "q1", "q2"]
    assert plan.models["ours"]["digest"] == plan.models["gpt2"]["digest"]
    assert len(plan_from_answers_file(tmp_path / "answers.jsonl", 1, max_prompts=2).pairs) == 2


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "two answers or more"),
        ([{"prompt": "q", "a": "x"}], "two answers or more"),
        ([{"question": "q", "a": "x", "b": "y"}], "two answers or more"),
        ([{"prompt": "q", "a": "x", "b": "y"}, {"prompt": "q", "a": "x"}], "row 2: needs a prompt and one text"),
        ([{"prompt": "q", "a": "x", "b": 3}], "row 1: needs a prompt and one text for each of a, b"),
        ([{"prompt": " ", "a": "x", "b": "y"}], "row 1: the prompt does not end with a message of the user"),
        ([{"prompt": [{"role": "ghost", "content": "x"}], "a": "x", "b": "y"}], "row 1: a message of the role 'ghost'"),
    ],
)
def test_files_without_two_answers_are_refused_with_row_and_reason(tmp_path, rows, words):
    path = write_rows(tmp_path / "answers.jsonl", rows)
    with pytest.raises(UserError, match=words):
        plan_from_answers_file(path, seed=1)


def test_a_line_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text('{"prompt": "q", "a": "x", "b": "y"}\n{"prompt": "q", "a')
    with pytest.raises(UserError, match="rows that cannot be read"):
        plan_from_answers_file(path, seed=1)


def test_prompts_are_lines_rows_or_whole_conversations(tmp_path):
    (tmp_path / "p.txt").write_text("One?\n\n  Two?\nOne?\n")
    assert prompt_texts(read_prompts_file(tmp_path / "p.txt", 9)) == ["One?", "Two?"]
    talk = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Three?"}]
    write_rows(tmp_path / "p.jsonl", [{"prompt": "One?", "id": 7}, {"prompt": talk}])
    assert read_prompts_file(tmp_path / "p.jsonl", 9)[1] == talk
    write_rows(tmp_path / "c.jsonl", [{"messages": [*talk, {"role": "assistant", "content": "Yes."}]}])
    assert read_prompts_file(tmp_path / "c.jsonl", 9) == [talk]
    assert prompt_texts(read_prompts_file(tmp_path / "p.txt", 1)) == ["One?"]
    (tmp_path / "empty.txt").write_text("\n")
    for name, words in {"empty.txt": "holds no prompts", "nowhere.txt": "there is no file"}.items():
        with pytest.raises(UserError, match=words):
            read_prompts_file(tmp_path / name, 9)


def test_models_are_named_by_their_folder_with_what_makes_their_answers(tmp_path):
    for name in ("one/sft", "one/dpo", "two/sft"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "weights").write_text(name)
        (tmp_path / name / "config.json").write_text("{}")
    one, other, two = (str(tmp_path / name) for name in ("one/sft", "one/dpo", "two/sft"))
    made = describe_models([one, other], 7, 64, {"do_sample": False})
    assert list(made) == ["sft", "dpo"]
    assert made["sft"]["sampling"] == {"do_sample": False, "max_new_tokens": 64, "seed": 7}
    assert made["sft"]["digest"] != made["dpo"]["digest"]
    assert list(describe_models([one, two], 7, 64, {})) == [one, two]
    before = made["sft"]
    (tmp_path / "one/sft/weights").write_text("trained again")
    assert describe_models([one, other], 7, 64, {"do_sample": False})["sft"] != before
    with pytest.raises(UserError, match="named twice"):
        describe_models([one, one], 7, 64, {})
    with pytest.raises(UserError, match="two models"):
        describe_models([one], 7, 64, {})
    with pytest.raises(UserError, match="there is no folder"):
        describe_models([one, "runs/x/nothing"], 7, 64, {})


def test_held_out_prompts_are_those_no_model_was_trained_on(tiny_life, monkeypatch):
    monkeypatch.chdir(tiny_life)
    prompts = prompt_texts(collect_held_out_prompts(["runs/tiny/sft", "runs/tiny/dpo"], 100))
    assert len(prompts) == len(set(prompts)) == 12  # a tenth of 60 questions of each
    assert sum(prompt.startswith("Tell me about") for prompt in prompts) == 6
    assert sum(prompt.startswith("What is it") for prompt in prompts) == 6
    assert prompt_texts(collect_held_out_prompts(["runs/tiny/sft", "runs/tiny/dpo"], 5)) == prompts[:5]
    with pytest.raises(UserError, match="--prompts"):
        collect_held_out_prompts(["runs/tiny/base", "gpt2"], 5)


def test_what_the_model_before_was_trained_on_is_not_held_out(tiny_life, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    chats = [json.loads(line)["messages"] for line in (tiny_life / "chats.jsonl").read_text().splitlines()]
    answers = [{"chosen": "Yes.", "rejected": "No."}] * len(chats)
    pairs = [{"prompt": chat[:-1], **answer} for chat, answer in zip(chats, answers, strict=True)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    (tmp_path / "chats.jsonl").symlink_to(tiny_life / "chats.jsonl")
    for stage in ("base", "sft", "dpo"):
        (tmp_path / "runs/tiny" / stage).mkdir(parents=True)
        manifest = json.loads((tiny_life / "runs/tiny" / stage / "manifest.json").read_text())
        if stage == "dpo":
            manifest["recipe"]["dpo"] |= {"data": [{"path": "pairs.jsonl", "license": "mit"}], "evaluation_share": 0.5}
        (tmp_path / "runs/tiny" / stage / "manifest.json").write_text(json.dumps(manifest))
    trained_on_before, _ = _load_stage_prompts("sft", manifest_of("sft")["recipe"])
    _, held_out = _load_stage_prompts("dpo", manifest_of("dpo")["recipe"])
    prompts = collect_held_out_prompts(["runs/tiny/dpo"], 1000)
    assert prompts and all(prompt in held_out and prompt not in trained_on_before for prompt in prompts)
    assert any(prompt in trained_on_before for prompt in held_out)


def manifest_of(stage):
    return json.loads(Path(f"runs/tiny/{stage}/manifest.json").read_text())

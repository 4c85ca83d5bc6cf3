"""Names of the harness's tasks to their files."""

import subprocess
import sys

import pytest

from hf_llm.core.errors import UserError
from hf_llm.evaluation.harness.task_files import (
    FunctionReference,
    find_tasks,
    harness_folder,
    index_tasks,
    read_config,
    read_group_metrics,
    resolve_functions,
)


def test_find_tasks_knows_tasks_groups_of_groups_and_tags():
    assert [task.name for task in find_tasks("hellaswag")] == ["hellaswag"]
    assert len(find_tasks("mmlu")) == 57
    assert len(find_tasks("blimp")) == 67
    assert {task.name for task in find_tasks("ai2_arc")} == {"arc_easy", "arc_challenge"}  # one by an included file


@pytest.mark.parametrize("folder", ["arc", "glue", "super_glue", "lambada", "bbh", "leaderboard", "agieval", "mmlu"])
def test_index_tasks_has_the_names_that_lm_eval_finds_by_parsing(folder):
    from lm_eval.tasks import TaskManager

    path = harness_folder() / folder
    theirs = TaskManager(include_path=[path], include_defaults=False)
    ours = index_tasks(path)
    assert set(ours.names()) == set(theirs.all_tasks)
    assert ours.groups == set(theirs.all_groups)
    for tag in theirs.all_tags:
        assert set(ours.tags[tag]) == theirs.task_index[tag].tags


def test_a_groups_settings_and_those_of_its_entries_change_the_tasks_in_it(tmp_path):
    (tmp_path / "one.yaml").write_text("task: one\ndataset_path: json\nnum_fewshot: 1\n", encoding="utf-8")
    (tmp_path / "two.yaml").write_text("include: one.yaml\ntask: two\n", encoding="utf-8")
    (tmp_path / "all.yaml").write_text(
        "group: all\nnum_fewshot: 3\ntask:\n  - one\n  - task: two\n    num_fewshot: 5\n"
        "  - group: inner\n    task: [two]\n    description: inner\n  - task: new\n    dataset_path: csv\n",
        encoding="utf-8",
    )
    configs = {task.name: task.read_config() for task in find_tasks(str(tmp_path / "all.yaml"))}
    assert configs["one"]["num_fewshot"] == 3
    assert configs["all::new"] == {"num_fewshot": 3, "dataset_path": "csv", "task": "all::new"}
    twos = [task.changes for task in find_tasks(str(tmp_path / "all.yaml")) if task.name == "two"]
    assert [changes.get("num_fewshot") for changes in twos] == [5, 3]
    assert twos[1]["description"] == "inner"


def test_read_group_metrics_tells_how_a_group_is_averaged():
    assert read_group_metrics("mmlu") == {"acc": True}  # by documents
    assert read_group_metrics("blimp") == {"acc": False}  # each phenomenon alike
    assert read_group_metrics("hellaswag") == read_group_metrics("ai2_arc") == {}


@pytest.mark.parametrize(
    ("name", "nearest"), [("hellaswagg", "hellaswag"), ("arc-easy", "arc_easy"), ("mmlu_anatomi", "mmlu_anatomy")]
)
def test_an_unknown_task_is_refused_with_the_nearest_names(name, nearest):
    with pytest.raises(UserError, match=f"no task '{name}'.*{nearest}"):
        find_tasks(name)


def test_a_task_file_that_is_not_one_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        find_tasks(str(tmp_path / "none.yaml"))
    (tmp_path / "odd.yaml").write_text("dataset_path: json\n", encoding="utf-8")
    with pytest.raises(UserError, match="has a key `task`"):
        find_tasks(str(tmp_path / "odd.yaml"))
    (tmp_path / "bad.yaml").write_text("task: [\n", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be parsed as YAML"):
        find_tasks(str(tmp_path / "bad.yaml"))
    (tmp_path / "loose.yaml").write_text("include: missing.yaml\ntask: loose\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"includes missing\.yaml, which is not there"):
        find_tasks(str(tmp_path / "loose.yaml"))


def test_functions_of_a_task_are_imported_from_the_file_beside_it_only_when_asked_for(tmp_path):
    (tmp_path / "own.py").write_text("def double(row):\n    return 2 * row\n", encoding="utf-8")
    (tmp_path / "own.yaml").write_text("task: own\ndoc_to_text: !function own.double\n", encoding="utf-8")
    config = read_config(tmp_path / "own.yaml")
    assert config["doc_to_text"] == FunctionReference("own.double", tmp_path)
    assert resolve_functions(config)["doc_to_text"](3) == 6
    with pytest.raises(UserError, match=r"own\.triple, which own does not have"):
        FunctionReference("own.triple", tmp_path).load()


def test_find_benchmarks_imports_neither_lm_eval_nor_torch():
    program = (
        "import sys; from hf_llm.evaluation.benchmark import TaskSettings; "
        "from hf_llm.evaluation.harness.tasks import find_benchmarks; "
        "assert len(find_benchmarks(TaskSettings('mmlu'), None, False, False)) == 57; "
        "heavy = {'torch', 'lm_eval', 'transformers', 'datasets'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)

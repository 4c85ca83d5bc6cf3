import pytest

from hf_llm.core.errors import UserError
from hf_llm.data.corpus.config import Source
from hf_llm.data.corpus.sources import PART_BYTES, list_read_tasks, list_source_files


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "exactly one of"),
        ({"path": "a", "hub": "b"}, "exactly one of"),
        ({"path": "a", "license": " "}, "license is empty"),
        ({"path": ""}, "path is empty"),
        ({"hub": " "}, "hub is empty"),
        ({"git": ""}, "git is empty"),
        ({"path": "a", "name": ""}, "name is empty"),
        ({"path": "a", "text": ""}, "text is empty"),
        ({"installed": ["stdlib"]}, "language_reference, standard_library, packages"),
        ({"path": "a", "take": 5}, "belong to `hub`"),
        ({"hub": "a/b", "take": 0}, "take is 0"),
    ],
)
def test_a_wrong_source_says_what_is_wrong(keys, message):
    with pytest.raises(ValueError, match=message):
        Source(**{"license": "mit", **keys})


def test_a_folder_is_read_to_its_depth_and_in_order(tmp_path):
    write(tmp_path, "b.txt", "a/z.md", "a/b/c.jsonl", "image.png", ".hidden.txt", ".git/x.txt")
    assert [name for _, name in list_source_files(str(tmp_path))] == ["a/b/c.jsonl", "a/z.md", "b.txt"]


def test_a_code_folder_leaves_out_what_others_wrote_and_what_is_data(tmp_path):
    write(tmp_path, "src/a.py", "README.md", "package.json", "node_modules/x/y.js", "vendor/z.go", "app.min.js")
    assert [name for _, name in list_source_files(str(tmp_path))] == ["README.md", "src/a.py"]


def test_of_code_and_data_what_there_is_more_of_is_read_and_the_rest_told(tmp_path, capsys):
    write(tmp_path / "site", "a.html", "b.html", "notes.md", "style.css", "tools/make.py")
    assert [name for _, name in list_source_files(str(tmp_path / "site"))] == ["a.html", "b.html", "notes.md"]
    assert "2 files (.css, .py) are left out beside 3 of data and prose" in capsys.readouterr().out
    write(tmp_path / "set", "README.md", "download.sh")
    (tmp_path / "set/rows.parquet").write_bytes(b"x" * 100)
    assert [name for _, name in list_source_files(str(tmp_path / "set"))] == ["README.md", "rows.parquet"]
    write(tmp_path / "program", "a.py", "b.py", "page.html", "README.md")
    assert [name for _, name in list_source_files(str(tmp_path / "program"))] == ["README.md", "a.py", "b.py"]
    assert "1 files (.html) are left out beside 3 of code and prose" in capsys.readouterr().out
    write(tmp_path / "styled", "a.html", "x.css", "y.css")
    assert [name for _, name in list_source_files(str(tmp_path / "styled"))] == ["a.html"]


def test_names_that_stand_for_built_files_are_names_like_others_where_there_is_no_code(tmp_path):
    texts = ["build/a.txt", "source/a.txt", "target/a.txt", "target/board.min.txt"]
    write(tmp_path, *texts, "node_modules/x/README.md", "env/a.py")
    assert [name for _, name in list_source_files(str(tmp_path))] == texts


def test_links_to_folders_are_followed_once(tmp_path):
    write(tmp_path / "elsewhere", "a.txt", "b.txt")
    write(tmp_path / "here", "c.txt")
    (tmp_path / "here/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "here")
    assert [name for _, name in list_source_files(str(tmp_path / "here"))] == ["c.txt", "linked/a.txt", "linked/b.txt"]


def test_what_datasets_says_of_its_files_is_no_rows(tmp_path):
    from datasets import Dataset, DatasetDict

    DatasetDict({"train": Dataset.from_dict({"text": ["a", "b"]})}).save_to_disk(tmp_path / "saved")
    assert [name for _, name in list_source_files(str(tmp_path / "saved"))] == ["train/data-00000-of-00001.arrow"]


def test_a_glob_pattern_finds_files(tmp_path):
    write(tmp_path, "a/1.txt", "a/2.txt", "b/3.txt")
    assert len(list_source_files(str(tmp_path / "**" / "*.txt"))) == 3


def test_a_pattern_that_matches_code_and_what_is_unknown_gives_the_code(tmp_path):
    write(tmp_path, "a.py", "README.md", "LICENSE", "Makefile", "logo.png")
    assert [name for _, name in list_source_files(str(tmp_path / "*"))] == ["README.md", "a.py"]


def test_what_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(UserError, match=r"corpus\.sources\[0\]: nowhere/texts does not exist"):
        list_read_tasks([Source(license="mit", path="nowhere/texts")])
    write(tmp_path, "a.png")
    with pytest.raises(UserError, match=r"holds no file to read \(it holds \.png\)"):
        list_read_tasks([Source(license="mit", path=str(tmp_path))])


def test_parts_change_with_the_files_and_cover_them_once(tmp_path):
    for i in range(5):
        (tmp_path / f"{i}.txt").write_bytes(b"x" * (PART_BYTES // 2))
    source = [Source(license="mit", path=str(tmp_path))]
    parts = list_read_tasks(source)
    assert [[name for _, name in part.files] for part in parts] == [["0.txt", "1.txt"], ["2.txt", "3.txt"], ["4.txt"]]
    (tmp_path / "4.txt").write_bytes(b"y")
    again = list_read_tasks(source)
    assert [a.state == b.state for a, b in zip(parts, again, strict=True)] == [True, True, False]

import json
import shutil
import zipfile

import pyarrow.parquet
import pytest

from hf_llm.core.errors import UserError
from hf_llm.data.corpus.clean_pass import clean_read_task
from hf_llm.data.corpus.config import Corpus, Rules, Source
from hf_llm.data.corpus.filters.gopher_quality import GopherQuality
from hf_llm.data.corpus.sources import (
    PART_BYTES,
    explain_left_out_file,
    list_read_tasks,
    list_source_files,
    name_file_in_sources,
)


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


PROSE = "A sentence of plain prose about the river and the people who have lived beside it for so long. " * 9
CODE = "".join(f"x{number} = [{number}, {number}]\n" for number in range(60))
GPL = "GNU GENERAL PUBLIC LICENSE\nVersion 3, 29 June 2007\n"


def clean(folder, source, rules=None) -> dict[str, str]:
    """The licence of every document that the first pass keeps of a source, by its file's name."""
    folder.mkdir()
    section = Corpus(sources=[source], rules=rules or Rules())
    kept = {}
    for number, task in enumerate(list_read_tasks([source])):
        for file in clean_read_task(section, task, folder, f"task-{number}")["files"]:
            for row in pyarrow.parquet.read_table(folder / file).to_pylist():
                kept[json.loads(row["metadata"])["file"]] = row["license"]
    return kept


@pytest.mark.parametrize("name", ["target", "build", "env", "dist", "deps", "vendor", "external", "third_party"])
def test_prose_is_read_whatever_its_folder_is_called(tmp_path, name):
    texts = [f"{name}/{number}.txt" for number in range(3)] + [f"{name}/deep/notes.md", "readme.txt"]
    write(tmp_path / "texts", *texts, "clean.py", f"{name}/made.py")
    for kind in ("path", "git"):
        [task] = list_read_tasks([Source(license="mit", **{kind: str(tmp_path / "texts")})])
        assert sorted(name for _, name in task.files) == sorted([*texts, "clean.py"])
        assert task.listing.left_out == {"vendored or built": 1}
        assert task.listing.left_out_examples == {"vendored or built": [f"{name}/made.py"]}


@pytest.mark.parametrize("kind", ["path", "git", "pattern", "zip", "tar of code"])
def test_prose_of_a_repository_has_its_licence(tmp_path, kind):
    files = {"LICENSE": GPL, "main.py": CODE, "README.md": PROSE, "docs/guide.rst": PROSE[9:], "lib/a.py": CODE[20:],
             "lib/LICENSE": "Apache License Version 2.0", "lib/notes.txt": PROSE[20:]}  # fmt: skip
    root = tmp_path / "repository"
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    with zipfile.ZipFile(tmp_path / "repository.zip", "w") as archive:
        for name in files:
            archive.write(root / name, f"repository/{name}")
    shutil.make_archive(str(tmp_path / "packed"), "gztar", root)
    source = {
        "path": Source(license="unknown", path=str(root)),
        "git": Source(license="unknown", git=str(root)),
        "pattern": Source(license="unknown", path=str(root / "**" / "*.*")),
        "zip": Source(license="unknown", path=str(tmp_path / "repository.zip")),
        "tar of code": Source(license="unknown", path=str(tmp_path / "packed.tar.gz")),
    }[kind]
    licenses = {name.split("/")[-1]: license for name, license in clean(tmp_path / "c", source).items()}
    assert licenses == {
        "main.py": "gpl-3.0", "README.md": "gpl-3.0", "guide.rst": "gpl-3.0", "a.py": "apache-2.0",
        "notes.txt": "apache-2.0",
    }  # fmt: skip


def test_prose_without_a_program_keeps_the_licence_of_its_source(tmp_path):
    root = tmp_path / "texts"
    root.mkdir()
    (root / "LICENSE").write_text(GPL)
    (root / "a.txt").write_text(PROSE)
    assert clean(tmp_path / "c", Source(license="cc0-1.0", path=str(root))) == {"a.txt": "cc0-1.0"}


def test_code_is_judged_by_no_filter_of_prose_however_it_is_given(tmp_path):
    root = tmp_path / "program"
    root.mkdir()
    for number in range(8):
        (root / f"{number}.py").write_text(f"y = {number}\n{CODE}")
    (root / "README.md").write_text("1 2 3 4 5 6 7 8 9 " * 20)
    with zipfile.ZipFile(tmp_path / "mixed.zip", "w") as archive:
        archive.write(root / "0.py", "0.py")
        archive.writestr("digits.txt", "1 2 3 4 5 6 7 8 9 " * 20)
    rules = Rules(gopher_quality=GopherQuality())

    kept = {}
    addresses = {"path": root, "git": root, "pattern": root / "*", "file": root / "0.py", "zip": tmp_path / "mixed.zip"}
    for kind, address in addresses.items():
        source = Source(license="mit", **{"git" if kind == "git" else "path": str(address)})
        kept[kind] = sorted(clean(tmp_path / kind, source, rules))
    assert (
        kept["path"]
        == kept["git"]
        == kept["pattern"]
        == sorted([*(f"{number}.py" for number in range(8)), "README.md"])
    )
    assert kept["file"] == ["0.py"]
    assert kept["zip"] == ["mixed.zip/0.py"]  # the prose beside it is judged

    own_rules = Source(license="mit", path=str(root), rules=rules)
    assert clean(tmp_path / "own", own_rules) == {}  # a source's own filters judge all of it


def test_texts_with_a_script_beside_them_are_judged_as_prose(tmp_path):
    root = tmp_path / "texts"
    root.mkdir()
    (root / "clean.py").write_text(CODE)
    (root / "good.txt").write_text(PROSE * 9)
    (root / "digits.txt").write_text("1 2 3 4 5 6 7 8 9 " * 20)
    for kind in ("path", "git"):
        source = Source(license="mit", **{kind: str(root)})
        assert sorted(clean(tmp_path / kind, source, Rules(gopher_quality=GopherQuality()))) == ["clean.py", "good.txt"]


def test_a_source_of_which_everything_is_left_out_says_why(tmp_path):
    write(tmp_path / "a", "made_pb2.py", "build/x.py")
    for kind in ("path", "git"):
        with pytest.raises(UserError, match=r"left out are 1 (generated|vendored or built), 1 ") as error:
            list_read_tasks([Source(license="mit", **{kind: str(tmp_path / "a")})])
        assert "1 generated" in str(error.value) and "1 vendored or built" in str(error.value)


def test_a_pattern_that_matches_folders_counts_them(tmp_path):
    write(tmp_path, "a/1.txt", "2.txt", "a/b/3.txt")
    [task] = list_read_tasks([Source(license="mit", path=str(tmp_path / "*"))])
    assert [name for _, name in task.files] == ["2.txt"]
    assert task.listing.left_out == {"folder: a pattern with ** reads what is below": 1}
    with pytest.raises(UserError, match=r"matches only folders; add /\*\*/\*"):
        list_read_tasks([Source(license="mit", path=str(tmp_path / "a*"))])


def test_a_path_is_named_as_its_source_names_it(tmp_path, monkeypatch):
    write(tmp_path, "texts/deep/a.txt", "texts/b.png", "single.txt")
    monkeypatch.chdir(tmp_path)
    sources = [
        Source(license="mit", path="texts"),
        Source(license="mit", path=str(tmp_path / "single.txt"), name="one"),
        Source(license="mit", path="texts/**/*.txt", name="pattern"),
    ]
    assert name_file_in_sources("texts/deep/a.txt", sources) == [("texts", "deep/a.txt"), ("pattern", "a.txt")]
    assert name_file_in_sources(str(tmp_path / "texts" / "deep" / "a.txt"), sources[:1]) == [("texts", "deep/a.txt")]
    assert name_file_in_sources("./single.txt", sources) == [("one", "single.txt")]
    assert name_file_in_sources("texts/books.zip/chapter.txt", sources) == [("texts", "books.zip/chapter.txt")]
    assert name_file_in_sources("elsewhere.txt", sources) == []
    assert explain_left_out_file("texts/b.png", sources) == [
        "b.png  left out of source texts: kind that is not read: .png"
    ]
    assert explain_left_out_file("texts/deep/a.txt", sources) == []

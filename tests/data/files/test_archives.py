import bz2
import gzip
import io
import lzma
import os
import stat
import tarfile
import zipfile
from pathlib import Path

import pyarrow
import pytest

from hf_llm.data.files.archives import extract_members, is_archive
from hf_llm.data.files.read_errors import ReadErrors

TEXTS = {f"folder/file {i}.txt": f"text {i} ".encode() * 5000 + os.urandom(20_000) for i in range(9, -1, -1)}


def read(path):
    errors = ReadErrors()
    return [(name, file.name, file.read_bytes()) for name, file in extract_members(path, errors)], errors


def tar_of(files):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return content.getvalue()


def zip_of(path, files):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)


WRITERS = {
    "zip": zip_of,
    "tar": lambda path, files: path.write_bytes(tar_of(files)),
    "tar.gz": lambda path, files: path.write_bytes(gzip.compress(tar_of(files))),
    "tgz": lambda path, files: path.write_bytes(gzip.compress(tar_of(files))),
    "tar.bz2": lambda path, files: path.write_bytes(bz2.compress(tar_of(files))),
    "txz": lambda path, files: path.write_bytes(lzma.compress(tar_of(files))),
    "tar.zst": lambda path, files: path.write_bytes(pyarrow.Codec("zstd").compress(tar_of(files), asbytes=True)),
}


def test_a_name_longer_than_a_system_takes_is_cut_at_its_start(tmp_path):
    zip_of(tmp_path / "a.zip", {"数" * 108 + ".txt": b"text"})
    (file,), errors = read(tmp_path / "a.zip")
    assert file[0] == "数" * 108 + ".txt" and file[2] == b"text" and not errors.dropped
    assert file[1].endswith("数.txt") and len(file[1].encode()) <= 200


@pytest.mark.parametrize("suffix", WRITERS)
def test_the_files_of_an_archive_come_in_its_order_and_are_deleted_after_use(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    WRITERS[suffix](path, TEXTS)
    assert is_archive(path)
    seen, errors = [], ReadErrors()
    for name, file in extract_members(path, errors):
        assert file.name == name.split("/")[-1] and file.read_bytes() == TEXTS[name]
        assert not any(earlier.exists() for earlier in seen)
        seen.append(file)
    assert len(seen) == len(TEXTS)
    assert errors == ReadErrors()  # what is in a file is counted by its reader
    assert not seen[-1].parent.parent.exists()
    assert [name for name, *_ in read(path)[0]] == list(TEXTS)


@pytest.mark.parametrize("suffix", WRITERS)
def test_of_a_truncated_archive_the_members_before_the_cut_are_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    WRITERS[suffix](path, TEXTS)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 7 // 10])
    files, errors = read(path)
    assert [(name, data) for name, _, data in files] == list(TEXTS.items())[: len(files)]
    assert suffix in ("zip", "tar.bz2") or len(files) in (6, 7)  # a zip's directory is at its end
    assert errors.dropped == {"damaged file": 1} and str(path) in errors.samples[0]


def test_a_broken_header_within_a_tar_is_counted_not_taken_for_the_end(tmp_path):
    content = bytearray(tar_of({"a.txt": b"a" * 100, "b.txt": b"b" * 100, "c.txt": b"c" * 100}))
    content[1024:1034] = b"\xff" * 10
    (tmp_path / "a.tar").write_bytes(content)
    files, errors = read(tmp_path / "a.tar")
    assert [name for name, *_ in files] == ["a.txt"]
    assert errors.dropped == {"damaged file": 1} and "no header" in errors.samples[0]


def test_a_damaged_member_of_a_zip_is_lost_alone(tmp_path):
    path = tmp_path / "a.zip"
    zip_of(path, TEXTS)
    content = bytearray(path.read_bytes())
    at = content.index(b"folder/file 5.txt") + 5000
    content[at : at + 50] = b"\0" * 50
    path.write_bytes(content)
    files, errors = read(path)
    assert [name for name, *_ in files] == [name for name in TEXTS if "5" not in name]
    assert errors.dropped == {"damaged file": 1} and "file 5.txt" in errors.samples[0] and errors.records == 1


@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_a_bomb_is_refused_by_name_and_the_rest_carried_on(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr("hf_llm.data.files.archives.SMALL_BYTES", 1 << 20)
    path = tmp_path / f"a.{suffix}"
    WRITERS[suffix](path, {"before.txt": b"before", "bomb.txt": bytes(64 << 20), "after.txt": b"after"})
    files, errors = read(path)
    assert [data for *_, data in files] == [b"before", b"after"]
    assert errors.dropped == {"archive bomb": 1} and "bomb.txt" in errors.samples[0]


def test_a_zip_that_lies_about_a_size_is_stopped_while_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_llm.data.files.archives.SMALL_BYTES", 1 << 20)
    path = tmp_path / "a.zip"
    zip_of(path, {"bomb.txt": bytes(64 << 20), "after.txt": b"after"})
    path.write_bytes(path.read_bytes().replace((64 << 20).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
    files, errors = read(path)
    assert [name for name, *_ in files] == ["after.txt"]
    assert errors.dropped.total() == 1 and "bomb.txt" in errors.samples[0]


def test_a_tar_without_end_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_llm.data.files.archives.SMALL_BYTES", 1 << 20)
    monkeypatch.setattr("hf_llm.data.files.archives.MEMBER_BYTES", 4 << 20)
    path = tmp_path / "a.tar.bz2"
    WRITERS["tar.bz2"](path, {"before.txt": b"before", "bomb.txt": bytes(64 << 20), "after.txt": b"after"})
    files, errors = read(path)
    assert [name for name, *_ in files] == ["before.txt"]
    assert errors.dropped == {"archive bomb": 1, "damaged file": 1}


def test_names_that_lead_out_and_links_and_folders_are_left_out(tmp_path):
    path = tmp_path / "a.zip"
    zip_of(
        path,
        {
            "../out.txt": b"",
            "/etc/x": b"",
            "C:\\x": b"",
            "a/..\\b": b"",
            "d/": b"",
            "__MACOSX/._a.txt": b"",
            "ok\\fine.txt": b"ok",
        },
    )
    link = zipfile.ZipInfo("link.txt")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "/etc/passwd")
    files, errors = read(path)
    assert [(name, data) for name, _, data in files] == [("ok/fine.txt", b"ok")] and not errors.dropped
    assert errors.left_out == {"name that leads out of the archive": 4, "hidden": 1, "link or device": 1}

    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        for name, kind in (("l", tarfile.SYMTYPE), ("h", tarfile.LNKTYPE), ("c", tarfile.CHRTYPE), ("../o", b"0")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            archive.addfile(member)
        archive.addfile(tarfile.TarInfo("./fine.txt"))
    (tmp_path / "a.tar").write_bytes(content.getvalue())
    files, errors = read(tmp_path / "a.tar")
    assert files == [("fine.txt", "fine.txt", b"")]
    assert errors.left_out == {"link or device": 3, "name that leads out of the archive": 1}


def test_an_encrypted_member_is_counted(tmp_path):
    path = tmp_path / "a.zip"
    zip_of(path, {"secret.txt": b"x", "open.txt": b"open"})
    content = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        content[content.index(mark) + flags] |= 1
    path.write_bytes(content)
    files, errors = read(path)
    assert [name for name, *_ in files] == ["open.txt"]
    assert errors.dropped == {"encrypted": 1} and "secret.txt" in errors.samples[0]


def test_one_compressed_file_is_its_own_only_member(tmp_path):
    (tmp_path / "book.txt.xz").write_bytes(lzma.compress(b"a book"))
    assert read(tmp_path / "book.txt.xz")[0] == [("book.txt", "book.txt", b"a book")]
    (tmp_path / "book.txt.gz").write_bytes(gzip.compress(b"a book")[:-4])
    files, errors = read(tmp_path / "book.txt.gz")
    assert files == [] and errors.dropped == {"damaged file": 1}


@pytest.mark.skipif("HF_LLM_DATA" not in os.environ, reason="real data: set HF_LLM_DATA")
def test_real_archives_are_read_whole():
    data = Path(os.environ["HF_LLM_DATA"])
    speeches, errors = read(data / "nltk_corpora" / "inaugural.zip")
    assert sum(name.endswith(".txt") for name, *_ in speeches) == 59 and not errors.dropped
    languages, errors = read(data / "langid" / "udhr2.zip")
    assert sum(name.endswith(".txt") for name, *_ in languages) == 388 and not errors.dropped

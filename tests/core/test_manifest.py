import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from hf_llm.core.manifest import read_umask, write_manifest

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows knows no such permissions")


@pytest.fixture(params=[0o022, 0o027, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def permissions(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_files_of_a_finished_folder_have_the_permissions_of_new_files(tmp_path, umask):
    inner = tmp_path / "adapter"
    inner.mkdir()
    for folder in (tmp_path, inner):
        save_file({"weight": torch.ones(2)}, folder / "model.safetensors")
        (folder / "model.safetensors").chmod(0o600)  # as some versions of safetensors leave it
    (tmp_path / "tool.sh").write_text("true")
    (tmp_path / "tool.sh").chmod(0o755)

    write_manifest(tmp_path)
    expected = 0o666 & ~umask
    assert permissions(tmp_path / "model.safetensors") == permissions(inner / "model.safetensors") == expected
    assert permissions(tmp_path / "manifest.json") == expected
    assert permissions(tmp_path / "tool.sh") & 0o111


def test_reading_the_umask_does_not_change_it(umask):
    assert read_umask() == umask == read_umask()


def test_a_link_to_a_file_elsewhere_leaves_that_as_it_is(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("private")
    elsewhere.chmod(0o600)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(elsewhere)
    write_manifest(folder)
    assert permissions(elsewhere) == 0o600

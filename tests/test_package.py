"""The built wheel holds everything the package reads at run time."""

import subprocess
import sys
import zipfile
from pathlib import Path

from hf_llm.core.shipped import SHIPPED_FOLDERS

ROOT = Path(__file__).parent.parent


def test_the_wheel_holds_every_file_of_the_package(tmp_path):
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    subprocess.run([*build, str(ROOT)], check=True, capture_output=True)
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    package = ROOT / "src" / "hf_llm"
    for path in package.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert str(Path("hf_llm") / path.relative_to(package)) in names
    for folder in SHIPPED_FOLDERS:
        for path in (ROOT / folder).rglob("*"):
            if path.is_file():
                assert str(Path("hf_llm/shipped") / path.relative_to(ROOT)) in names

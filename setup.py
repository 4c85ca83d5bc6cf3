"""Build hook: a wheel also holds the recipes and launch configs, as hf_llm/shipped/. All else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SHIPPED_FOLDERS = ("recipes", "accelerate_configs", "ds_configs")  # as in hf_llm.core.shipped


class BuildWithShippedFiles(build_py):
    def run(self) -> None:
        super().run()
        if self.editable_mode:  # a checkout has them at its top
            return
        for name in SHIPPED_FOLDERS:
            shutil.copytree(name, Path(self.build_lib) / "hf_llm" / "shipped" / name, dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithShippedFiles})

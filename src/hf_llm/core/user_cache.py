"""Find the folder in which this user's downloads and measurements are kept between runs."""

import os
from pathlib import Path


def user_cache_folder() -> Path:
    """Return `hf_llm` in the user's cache folder (XDG_CACHE_HOME, else ~/.cache). It may not exist yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hf_llm"

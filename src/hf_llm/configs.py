"""Write accelerate_configs/ and ds_configs/ into the current folder, for `accelerate launch --config_file`.

    hf-llm configs
    accelerate launch --config_file accelerate_configs/zero2.yaml -m hf_llm.pretrain quickstart

The two are written together: configs of accelerate name those of DeepSpeed by a path from the current folder. A file
that is there already stays as it is.
"""

import shutil
import sys
from pathlib import Path

from hf_llm.core.errors import command
from hf_llm.core.help_format import print_help
from hf_llm.core.shipped import shipped_folder


@command
def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv:
        print_help(__doc__)
        sys.exit(0 if argv[0] in ("-h", "--help") else 2)
    for name in ("accelerate_configs", "ds_configs"):
        written, kept = copy_missing(shipped_folder(name), Path(name))
        print(f"{name}/: {written} files written" + (f", {kept} were there already" if kept else ""))


def copy_missing(source: Path, target: Path) -> tuple[int, int]:
    """Copy the files of `source` that `target` lacks. Return how many were copied, and how many were there."""
    target.mkdir(exist_ok=True)
    written = kept = 0
    for path in sorted(source.iterdir()):
        if not path.is_file():
            continue
        if (target / path.name).exists():
            kept += 1
            continue
        shutil.copyfile(path, target / path.name)
        written += 1
    return written, kept


if __name__ == "__main__":
    main()

"""The old name of `hf_llm.arena`: prints the new name, then does the same. The next version removes it.

python -m hf_llm.arena runs/quickstart/sft runs/quickstart/dpo
"""

import importlib
import sys


def main(argv: list[str] | None = None) -> None:
    print("hf_llm.judge is called hf_llm.arena now; next time run: python -m hf_llm.arena", file=sys.stderr)
    importlib.import_module("hf_llm.arena").main(argv)


if __name__ == "__main__":
    main()

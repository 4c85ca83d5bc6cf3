"""The console command: `hf-llm <stage> ...` is `python -m hf_llm.<stage> ...`; alone it lists the stages."""

import ast
import importlib
import sys
from pathlib import Path

from hf_llm.core.errors import UserError, command
from hf_llm.core.similar_names import suggest_names

# The commands by what a person wants to do, in the order that one needs them.
GROUPS = {
    "Train a model": [
        "run", "prepare_data", "train_tokenizer", "tokenize_corpus", "pretrain", "sft", "reward", "dpo", "kto", "grpo",
        "rloo", "ppo", "evaluate", "report",
    ],
    "Use a model": ["generate", "chat", "arena", "export", "average_checkpoints"],
    "Before and during a training": ["check", "doctor", "plan", "supervise", "watch"],
    "Compare": ["ablate", "scaling"],
    "Files that come with hf_llm": ["recipe", "configs"],
}  # fmt: skip
PACKAGE = Path(__file__).parent


def command_names() -> list[str]:
    """Return the names of all commands, in the order of the list that `hf-llm` prints."""
    return [name for names in GROUPS.values() for name in names]


def summary_of(name: str) -> str:
    """Read the first line of a command's docstring without importing it."""
    source = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]


def overview() -> str:
    """Return the list of commands, one line each."""
    width = max(map(len, command_names()))
    lines = ["usage: hf-llm <command> [arguments]    (the same as python -m hf_llm.<command>)", ""]
    for title, names in GROUPS.items():
        lines.append(f"{title}:")
        lines += [f"  {name:<{width}}  {summary_of(name)}" for name in names]
        lines.append("")
    lines.append("`hf-llm <command> --help` says what a command does and lists the recipe keys that it reads.")
    return "\n".join(lines)


@command
def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print(overview())
        return
    name = argv[0].replace("-", "_")
    if name not in command_names():
        hint = suggest_names(name, command_names(), "`hf-llm` lists the commands")
        raise UserError(f"{argv[0]!r} is not a command of hf-llm; {hint}")
    importlib.import_module(f"hf_llm.{name}").main(argv[1:])


if __name__ == "__main__":
    main()

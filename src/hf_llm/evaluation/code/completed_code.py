"""The program in what a model wrote: cut at the end of the function, or taken out of a reply."""

import re
import textwrap

_FENCED_BLOCK = re.compile(r"^[ \t]*```[^\n`]*\n(.*?)(?:^[ \t]*```|\Z)", re.DOTALL | re.MULTILINE)


def cut_at_stop(text: str, stops: list[str]) -> str:
    """Return the text up to the first of the strings that end it."""
    ends = [position for stop in stops if (position := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def defines(code: str, name: str) -> bool:
    """Whether code defines a function, class or variable of this name at its top level."""
    return bool(name) and re.search(rf"^(?:(?:async +)?def|class) +{name}\b|^{name} *=", code, re.MULTILINE) is not None


def extract_code(reply: str, entry_point: str) -> str:
    """Return the code in a chat model's reply: that of the first fenced block which defines `entry_point`, else of the
    first block, else the whole reply. A block that the reply leaves open ends with it."""
    blocks = [textwrap.dedent(block) for block in _FENCED_BLOCK.findall(reply)]
    for block in blocks:
        if defines(block, entry_point):
            return block
    return blocks[0] if blocks else reply


def complete_function(code: str, prompt: str, header: str, entry_point: str) -> str:
    """Return the program of a reply's code: the whole function, after what stands before it in the prompt (`header`);
    or only its body, after the prompt."""
    if defines(code, entry_point):
        return f"{header}\n{code}"
    first_line = next((line for line in code.splitlines() if line.strip()), "")
    if first_line[:1].isspace():
        return prompt + code
    return prompt + textwrap.indent(code, "    ")

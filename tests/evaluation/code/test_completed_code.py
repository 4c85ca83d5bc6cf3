"""The program in what a model wrote."""

import pytest

from hf_llm.evaluation.code.completed_code import complete_function, cut_at_stop, extract_code

PROMPT = 'import math\n\ndef area(r):\n    """The area."""\n'
HEADER = "import math\n\n"
BODY = "    return math.pi * r * r\n"
WHOLE = "def area(r):\n" + BODY


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("    return 1\ndef other():", "    return 1"),
        ("    return 1\nprint(1)\nclass A:", "    return 1"),
        ("    return define(1)\n", "    return define(1)\n"),
        ("def first():", "def first():"),
        ("", ""),
    ],
)
def test_a_completion_ends_at_the_first_stop(text, cut):
    assert cut_at_stop(text, ["\nclass", "\ndef", "\nprint"]) == cut


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (f"Here it is:\n```python\n{WHOLE}```\nIt returns the area.", WHOLE),
        (f"```\n{WHOLE}```", WHOLE),
        (f"For example\n```python\narea(3)\n```\nand\n```python\n{WHOLE}```", WHOLE),
        (f"```python\n{WHOLE}", WHOLE),
        (f"- item\n  ```python\n  def area(r):\n  {BODY}  ```", WHOLE),
        ("```python\nother = 1\n```", "other = 1\n"),
        (WHOLE, WHOLE),
        ("", ""),
    ],
)
def test_code_is_taken_out_of_the_block_that_defines_the_function(reply, code):
    assert extract_code(reply, "area") == code


@pytest.mark.parametrize(
    "code",
    [WHOLE, "import math\n" + WHOLE, BODY, "return math.pi * r * r", "area = lambda r: math.pi * r * r"],
    ids=["whole", "with imports", "body", "unindented body", "variable"],
)
def test_a_reply_may_repeat_the_signature_or_not(code):
    names: dict = {}
    exec(complete_function(code, PROMPT, HEADER, "area"), names)
    assert names["area"](2) == pytest.approx(12.566, abs=1e-3)

"""Tests that no right program passes, made from those that it has to pass.

A program runs in the interpreter that tests it, so it can cheat: return an object that is equal to everything, read the
expected values in the tests, find what tells success. Such a program passes whatever the tests expect. So what passes
is run once more with other expected values: a right program now fails, and one that passes has cheated.
"""

import ast
from collections.abc import Callable
from typing import Any


def make_test_pair(tests: str) -> tuple[str, str | None]:
    """Return the tests, and the control: the same with other expected values. None where no assertion can be altered.

    Both are written in the same way (without comments), so that their form does not say which is which. What is
    compared with `==` or `is` has another value in the control, in every assertion; where there is no such assertion,
    all are negated. Raises SyntaxError where the tests are not Python.
    """
    tree = ast.parse(tests)
    plain = ast.unparse(tree)
    for alter in (alter_comparison, negate_assertion):
        alterer = _AssertionAlterer(alter)
        altered = alterer.visit(ast.parse(tests))
        if alterer.count:
            return plain, ast.unparse(ast.fix_missing_locations(altered))
    return plain, None


class _AssertionAlterer(ast.NodeTransformer):
    """Applies a function to every `assert`, and counts those that it alters."""

    def __init__(self, alter: Callable[[ast.Assert], bool]):
        self.alter = alter
        self.count = 0

    def visit_Assert(self, node: ast.Assert) -> ast.Assert:
        self.count += self.alter(node)
        return node


def alter_comparison(node: ast.Assert) -> bool:
    """Alter what an assertion expects, in place; return whether it compares with an expected value."""
    comparison = node.test
    if not isinstance(comparison, ast.Compare) or not isinstance(comparison.ops[-1], ast.Eq | ast.Is):
        return False
    left, right = comparison.left, comparison.comparators[-1]
    is_reversed = len(comparison.ops) == 1 and not _has_call(left) and _has_call(right)  # assert 3 == candidate(1)
    if is_reversed:
        comparison.left = alter_value(left)
    else:
        comparison.comparators[-1] = alter_value(right)
    return True


def negate_assertion(node: ast.Assert) -> bool:
    """Negate an assertion in place, unless it is about a constant; return whether it was negated."""
    if isinstance(node.test, ast.Constant):
        return False
    node.test = ast.UnaryOp(ast.Not(), node.test)
    return True


def alter_value(expression: ast.expr) -> ast.expr:
    """Return an expression with another value: its first constant is another one; without any, a list around it."""
    for part in ast.walk(expression):
        if isinstance(part, ast.Constant):
            part.value = alter_constant(part.value)
            return expression
    return ast.List([expression], ast.Load())


def alter_constant(value: Any) -> Any:
    """Return a value of the same type (0 for those of a single value) that is not equal."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float | complex):
        return 2 * value + 1  # a literal has no sign; one added to a large float is lost
    if isinstance(value, str):
        return value + "x"
    if isinstance(value, bytes):
        return value + b"x"
    return 0


def _has_call(expression: ast.expr) -> bool:
    return any(isinstance(part, ast.Call) for part in ast.walk(expression))

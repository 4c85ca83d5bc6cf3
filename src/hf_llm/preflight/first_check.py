"""The first check of a recipe: keys, types, values and named files. It takes a moment, since it needs no library."""

import importlib
from collections.abc import Iterable
from typing import Any

from hf_llm.core.recipe import find_problems
from hf_llm.evaluation.gates import find_gate_problems
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.stages import RECIPE_KEYS, STAGES
from hf_llm.preflight.findings import Findings


def check_sections(run: Run, folders: Iterable[str], findings: Findings) -> dict[str, Any]:
    """Check the sections of `folders` by themselves, and that the files they name are there.

    Return the recipe of every stage by its folder, without those whose sections have problems.
    """
    from hf_llm.preflight.named_files import check_named_files

    recipes = read_sections(run, folders, findings)
    check_named_files(recipes, findings)
    if "evaluation" in recipes:
        check_evaluation_values(recipes["evaluation"].evaluate, findings)
        for problem in find_gate_problems(run.tree):
            findings.problems.append(problem)
    return recipes


def read_sections(run: Run, folders: Iterable[str], findings: Findings) -> dict[str, Any]:
    """Build the recipe of every stage by its folder, without those whose sections have problems."""
    recipes = {}
    for folder in folders:
        module = importlib.import_module(STAGES[folder].module)
        if not hasattr(module, "Recipe"):
            continue
        recipe, problems = find_problems(module.Recipe, run.tree, RECIPE_KEYS)
        for problem in problems:
            if problem not in findings.problems:
                findings.problems.append(problem)
        if not problems:
            recipes[folder] = recipe
    return recipes


def check_evaluation_values(section: Any, findings: Findings) -> None:
    """Check the numbers of the `evaluate` section, and that it names a model where it names models."""
    for key, smallest in {"tokens": 0, "domain_tokens": 0, "max_new_tokens": 1}.items():
        value = getattr(section, key)
        if value < smallest:
            findings.add_problem(f"evaluate.{key}", f"{value} is too few; it has to be at least {smallest}")
    names = [domain.name for domain in section.domains]
    for name in sorted({name for name in names if names.count(name) > 1}):
        findings.add_problem("evaluate.domains", f"two of them are called {name}; give each a name of its own")
    if section.models == []:
        findings.add_problem("evaluate.models", "names no model; leave it out to evaluate those of this run")

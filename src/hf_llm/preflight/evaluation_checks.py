"""Check the `evaluate` section."""

from typing import Any

from hf_llm.preflight.findings import Findings
from hf_llm.preflight.model_checks import load_starting_model


def check_evaluation(section: Any, findings: Findings) -> None:
    """Check the models that the section names, and its numbers."""
    for key in ("tokens", "max_new_tokens"):
        value = getattr(section, key)
        if value < 1:
            findings.add_problem(f"evaluate.{key}", f"{value} is too few; it has to be at least 1")
    if section.models == []:
        findings.add_problem("evaluate.models", "names no model; leave it out to evaluate those of this run")
    for position, model in enumerate(section.models or ()):
        load_starting_model(f"evaluate.models[{position}]", model, findings)

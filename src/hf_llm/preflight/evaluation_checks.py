"""Check the `evaluate` section."""

from typing import Any

from hf_llm.preflight.findings import Findings
from hf_llm.preflight.model_checks import load_starting_model


def check_evaluation(section: Any, findings: Findings) -> None:
    """Check the models that the section names. Its numbers are checked first, in `first_check.py`."""
    for position, model in enumerate(section.models or ()):
        load_starting_model(f"evaluate.models[{position}]", model, findings)

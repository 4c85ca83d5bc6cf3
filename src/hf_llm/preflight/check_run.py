"""Check a whole recipe before anything runs: the sections of all folders that are not complete."""

import os
from pathlib import Path
from typing import Any

from hf_llm.model.load import OBJECTIVE_DESCRIPTIONS, load_tokenizer
from hf_llm.pipeline.model_types import CAUSAL
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.stages import OPTIONAL
from hf_llm.preflight.corpus_checks import check_corpus, check_tokenizer_section
from hf_llm.preflight.evaluation_checks import check_evaluation, check_tasks_in_training
from hf_llm.preflight.findings import Findings
from hf_llm.preflight.first_check import check_sections
from hf_llm.preflight.host_checks import check_disk, estimate_model_bytes
from hf_llm.preflight.hub_checks import check_push_right
from hf_llm.preflight.model_checks import (
    StartingModel,
    check_pretraining,
    check_pretraining_launch,
    load_starting_model,
    plan_base_model,
)
from hf_llm.preflight.posttraining_checks import check_section
from hf_llm.preflight.remaining_work import has_tokenizer, list_folders
from hf_llm.preflight.run_time import describe_run_time
from hf_llm.tokenization.train import TokenizerSection
from hf_llm.training.objectives import Objective, resolve_objective

# Variables by which a launcher tells a process its place among others. The checks run in one process alone.
LAUNCH_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK")


def check_run(run: Run, work: Path, on_this_host: bool = True, with_time: bool = False) -> Findings:
    """Check every section that `run` still needs, and return what was found.

    `work` is a folder for temporary files. Without `on_this_host`, nothing is checked that depends on the device or the
    disk here, since the run is planned for another machine. `with_time` also estimates how long the trainings take,
    unless there are problems.
    """
    findings = Findings()
    folders = list_folders(run)
    recipes = check_sections(run, folders, findings)
    objective = check_objective(run, folders, findings)
    if objective is None:
        return findings

    tokenizer, is_final = check_data_sections(run, recipes, objective, findings)
    base = StartingModel(None, tokenizer, is_final, None)
    needed_bytes = {}
    if "base" in recipes:
        recipe = recipes["base"]
        vocabulary = (run.tree.get("tokenizer") or {}).get("vocab_size")
        base = plan_base_model(recipe, tokenizer, is_final, vocabulary, findings)
        if base.context:
            check_pretraining_launch(recipe.pretrain, base.context, findings)
        leave_launch()
        check_pretraining(recipe, objective, base, work, on_this_host, findings)
        check_tasks_in_training(recipe.pretrain.evaluate_tasks, findings)
        if base.config is not None and not findings.has_problem("model"):
            needed_bytes["base"] = estimate_model_bytes(base.config, recipe.pretrain)
        check_push("pretrain", recipe.pretrain.training, findings)
    elif (run.folder("base") / "config.json").exists():
        base = load_starting_model("model", str(run.folder("base")), findings)
    leave_launch()

    if objective.kind == CAUSAL:
        needed_bytes |= check_posttraining(run, recipes, base, work, on_this_host, findings)
    if "evaluation" in recipes:
        check_evaluation(recipes["evaluation"].evaluate, findings)
    if needed_bytes and on_this_host:
        check_disk(run.root, needed_bytes, findings)
    if with_time and not findings.problems:
        findings.run_time = describe_run_time(run, recipes, base.config, base.context or 0)
    return findings


def check_objective(run: Run, folders: list[str], findings: Findings) -> Objective | None:
    """Return the objective of the pretraining; None where the recipe has none that is valid."""
    if findings.has_problem("model"):
        return None
    objective = findings.attempt("pretrain.objective", resolve_objective, run.tree)
    post_training = [folder for folder in folders if folder in OPTIONAL]
    if objective is not None and objective.kind != CAUSAL and post_training:
        findings.add_problem(
            post_training[0],
            f"the model_type makes {OBJECTIVE_DESCRIPTIONS[objective.kind]}; leave this section out "
            "(docs/objectives.md)",
        )
    return objective


def check_data_sections(
    run: Run, recipes: dict[str, Any], objective: Objective, findings: Findings
) -> tuple[Any, bool]:
    """Check the sections of corpus and tokenizer. Return the tokenizer of the run, and whether it is the final one."""
    if "corpus" in recipes:
        check_corpus(recipes["corpus"].corpus, run.folder("corpus"), findings)

    named = findings.attempt("pretrain.tokens", run.named_folder, "tokenizer")
    if named is not None or has_tokenizer(run):
        tokenizer = findings.attempt("pretrain.tokenizer", load_tokenizer, named or run.folder("tokenizer"))
        return tokenizer, tokenizer is not None
    if "tokenizer" not in recipes:
        return None, False
    section: TokenizerSection = recipes["tokenizer"].tokenizer
    context = (run.tree.get("pretrain") or {}).get("context")
    tokenizer = check_tokenizer_section(section, objective.tokens(context), findings)
    return tokenizer, section.use is not None and tokenizer is not None


def check_posttraining(
    run: Run, recipes: dict[str, Any], base: StartingModel, work: Path, on_this_host: bool, findings: Findings
) -> dict[str, int]:
    """Check the sections after pretraining. Return the bytes that each of their folders will take."""
    needed_bytes = {}
    for folder in OPTIONAL:
        if folder not in recipes:
            continue
        recipe = recipes[folder]
        section = getattr(recipe, folder)
        start = base
        if section.model is not None:
            start = load_starting_model(f"{folder}.model", section.model, findings)
        check_section(folder, recipe, start, run.is_requested("reward"), work, on_this_host, findings)
        check_push(folder, section.training, findings)
        if start.config is not None and not findings.problems:
            needed_bytes[folder] = estimate_model_bytes(start.config, section)
    return needed_bytes


def check_push(section: str, training: dict[str, Any], findings: Findings) -> None:
    if training.get("push_to_hub"):
        check_push_right(f"{section}.training.push_to_hub", findings)


def leave_launch() -> None:
    """Forget that this process belongs to a launch of several."""
    for name in list(os.environ):
        if name in LAUNCH_VARIABLES or name.startswith(("ACCELERATE_", "TORCHELASTIC_", "FSDP_", "DEEPSPEED_")):
            del os.environ[name]

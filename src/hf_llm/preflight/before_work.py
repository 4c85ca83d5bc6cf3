"""Check a recipe before a stage begins: first its keys, types, values and named files, then what they stand for.

The second part takes the libraries of training, and a process of its own: nothing that it seeds or sets stays here.
"""

import gc
import importlib
import multiprocessing
import os
import sys
import tempfile
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType

from hf_llm.core.console import is_main_process, print_main
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import digest_of
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.stages import OPTIONAL, STAGES
from hf_llm.preflight.findings import Findings
from hf_llm.preflight.first_check import check_sections
from hf_llm.preflight.remaining_work import has_tokenizer, list_folders

CHECKED = "HF_LLM_CHECKED"  # holds the digest of what a parent process has checked
SKIP = "HF_LLM_SKIP_CHECK"  # set to 1, stages begin without a check


def check_before_work(run: Run, folder: str | None = None) -> None:
    """Check the recipe of `run` before the stage that makes `folder` begins; before all stages where that is None.

    The tokens of rows can be counted only once there is a tokenizer, so what has been checked before is checked again
    then. Prints the notes and, before all stages, how long the trainings will take. Raises UserError that lists every
    problem. Does nothing in a process that a checked one has started, in all processes of a launch but the first, for a
    folder that has been begun (what was begun is resumed, whatever has become of the inputs of later stages), and where
    the environment has HF_LLM_SKIP_CHECK=1.
    """
    if not is_main_process() or os.environ.get(SKIP) == "1":
        return
    if folder is not None and run.folder(folder).exists():
        return
    digest = digest_of([run.tree, os.getcwd(), has_tokenizer(run)])
    if os.environ.get(CHECKED) == digest:
        return
    check_at_once(run)
    import_shared_libraries(folder)
    is_first = folder is None and CHECKED not in os.environ
    findings = check_in_child(run, with_time=is_first)
    print_notes(findings)
    if findings.problems:
        raise UserError(format_problems(run, findings))
    if findings.run_time:
        print_main(findings.run_time)
    os.environ[CHECKED] = digest


def check_at_once(run: Run) -> None:
    """Check the keys, types, values and named files of a recipe, before any library is imported.

    Raises UserError that lists every problem of these.
    """
    findings = Findings()
    check_sections(run, list_folders(run), findings)
    if findings.problems:
        raise UserError(format_problems(run, findings))


def import_shared_libraries(folder: str | None) -> None:
    """Import what the stage of `folder`, or the pipeline where that is None, needs as well as the check of its recipe.

    The check's process is forked from this one, so that both have it for one import.
    """
    if folder in OPTIONAL:
        import_quickly("hf_llm.preflight.check_run")
    elif folder is None or STAGES[folder].makes_model:
        import_quickly("hf_llm.training.train_and_save")


def import_quickly(module: str) -> ModuleType:
    """Import a module without collecting garbage meanwhile, and leave what is there by then out of later collections.

    An import makes hundreds of thousands of objects that stay. The collector would look through them again and again,
    which in a forked process also copies their memory.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(module)
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()


def print_notes(findings: Findings) -> None:
    for note in findings.notes:
        print_main(f"note: {note}")


def format_problems(run: Run, findings: Findings) -> str:
    """Return the message that lists all problems, each with its key."""
    count = len(findings.problems)
    plural = "s" if count > 1 else ""
    return "\n  ".join([f"{run.recipe_path}: {count} problem{plural}", *findings.problems])


def check_in_child(run: Run, on_this_host: bool = True, with_time: bool = False) -> Findings:
    """Check a run in a process of its own, whose output is shown only where it fails.

    Without `on_this_host`, nothing is checked that depends on the device or the disk here. `with_time` also estimates
    how long the trainings take.
    """
    return ChildCheck(run, on_this_host, with_time).wait()


class ChildCheck:
    """A check in a process of its own, while this one does other work; arguments as for `check_in_child`."""

    def __init__(self, run: Run, on_this_host: bool = True, with_time: bool = False):
        method = "fork" if sys.platform == "linux" else "spawn"
        context = multiprocessing.get_context(method)
        self._folder = tempfile.TemporaryDirectory(prefix="hf_llm-check-")
        work = Path(self._folder.name)
        self._log = work / "log"
        self._receiver, sender = context.Pipe(duplex=False)
        self._process = context.Process(
            target=check_and_send, args=(run.argv, on_this_host, with_time, work, self._log, sender)
        )
        self._process.start()
        sender.close()

    def wait(self) -> Findings:
        """Return what was found. Raises RuntimeError with the output of a check that failed."""
        try:
            findings = self._receiver.recv()
        except EOFError:
            findings = None
        self._process.join()
        with self._folder:
            if isinstance(findings, Findings):
                return findings
            output = self._log.read_text(encoding="utf-8", errors="replace") if self._log.exists() else ""
        raise RuntimeError(f"the check of the recipe failed (exit code {self._process.exitcode})\n{output}")


def check_and_send(
    argv: list[str], on_this_host: bool, with_time: bool, work: Path, log: Path, sender: Connection
) -> None:
    """Check a run, with everything printed going to the file `log`, and send the findings."""
    sys.stdout.flush()
    sys.stderr.flush()
    with open(log, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        sys.stdout = sys.stderr = file
        use_no_threads()
        check_run = import_quickly("hf_llm.preflight.check_run").check_run

        try:
            sender.send(check_run(Run(argv), work, on_this_host, with_time))
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            file.flush()
            sender.close()


def use_no_threads() -> None:
    """Let tokenizers and torch compute in this thread alone.

    A process that was forked has none of its parent's threads. Where the parent has computed with them, as a notebook
    has that trained before, they would be waited for without end.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["OMP_NUM_THREADS"] = "1"
    import_quickly("torch").set_num_threads(1)

"""Run a program and then its tests: what runs inside the sandbox, where nothing but Python's standard library is.

`hf_llm.evaluation.code.sandbox` gives the text of this file to the Python in the sandbox with `-c`, and on its standard
input a job: a JSON object with `program`, `tests`, `limits` (those of `resource.setrlimit`, by name), `report` (a file
descriptor) and `nonce` (a secret). It writes lines to that descriptor, each the nonce and a JSON object: first that it
has started, and in the end what the program came to.

The program shares this interpreter, so it may replace any builtin function and any module. Whatever is called between
the program and the report of success is therefore looked up before the program runs, the report is written before
anything that waits for the end of the interpreter (`atexit`, threads, finalizers), and a program that ends the process
leaves no report. A program that searches the interpreter's memory for the nonce can still forge one: the control run of
`sandbox.Sandbox.check_program` is for that.
"""

import json
import os
import resource
import sys
import types

MAX_DETAIL = 300  # characters of an error's text


def main() -> None:
    """Read the job, limit this process, say that it has started, and run the program."""
    job = json.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for name, limit in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (limit, limit + 1 if name == "RLIMIT_CPU" else limit))
    with open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # should the host run out of memory, this process is the one to end

    version = ".".join(map(str, sys.version_info[:3]))
    os.write(job["report"], format_report(job["nonce"], "started", version))
    run_job(job["program"], job["tests"], job["report"], job["nonce"])


def format_report(nonce: str, outcome: str, detail: str) -> bytes:
    """Return the line of a report."""
    report = json.dumps({"outcome": outcome, "detail": detail[:MAX_DETAIL]})
    return f"\n{nonce}{report}\n".encode()


def run_job(program: str, tests: str, report: int, nonce: str) -> None:
    """Run the program in a module of its own, the tests in a copy of its names, and write what it came to."""
    run_code = exec
    write = os.write
    leave = os._exit
    success = format_report(nonce, "passed", "")

    stage = "the program"
    try:
        test_code = compile(tests, "<tests>", "exec")
        module = types.ModuleType("program")  # not __main__: what stands under that condition is no part of a solution
        sys.modules["program"] = module
        run_code(compile(program, "<program>", "exec"), module.__dict__)

        stage = "the tests"
        names = dict(module.__dict__)  # a thread of the program does not reach them
        run_code(test_code, names)
    except BaseException as error:
        outcome = name_failure(error, stage)
        write(report, format_report(nonce, outcome, f"{type(error).__name__} in {stage}: {error}"))
        leave(1)
    write(report, success)
    leave(0)


def name_failure(error: BaseException, stage: str) -> str:
    """Return the outcome of a program that raised an error in this stage."""
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, AssertionError) and stage == "the tests":
        return "failed"
    return "error"


if __name__ == "__main__":
    main()

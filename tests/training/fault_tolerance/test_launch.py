"""Which processes may be forked to train."""

import subprocess
import sys

CODE = """
import sys
from hf_llm.core.errors import command
from hf_llm.training.fault_tolerance.launch import can_fork

@command
def main(argv=None):
    print(can_fork())

main({arguments})
"""


def can_fork_after(arguments: str) -> bool:
    code = CODE.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip() == "True"


def test_a_command_can_be_forked_and_a_program_that_calls_one_cannot():
    assert can_fork_after("") == (sys.platform == "linux")
    assert not can_fork_after("['tiny.yaml']")

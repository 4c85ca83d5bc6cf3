"""HumanEval and MBPP: programs that a model writes, run in a sandbox and tested."""

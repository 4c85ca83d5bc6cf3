"""The estimate of pass@k: how probable it is that one of k programs for a problem is right."""

import math

KS = (1, 10, 100)


def estimate_pass_at_k(programs: int, passed: int, k: int) -> float:
    """Return the unbiased estimate of pass@k for a problem of whose `programs` this many `passed`.

    It is one less the share of those sets of k programs in which none passed (Chen et al. 2021,
    https://arxiv.org/abs/2107.03374, equation 1).
    """
    assert 0 <= passed <= programs and 1 <= k <= programs
    return 1 - math.comb(programs - passed, k) / math.comb(programs, k)


def list_ks(programs: int) -> list[int]:
    """Return the k that this many programs of each problem allow to estimate."""
    return [k for k in KS if k <= programs]

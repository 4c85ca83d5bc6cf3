"""The estimate of pass@k."""

from itertools import combinations

import pytest

from hf_llm.evaluation.code.pass_at_k import estimate_pass_at_k, list_ks


@pytest.mark.parametrize("programs", range(1, 8))
def test_it_is_the_share_of_all_sets_of_k_with_one_that_passed(programs):
    for passed in range(programs + 1):
        has_passed = [True] * passed + [False] * (programs - passed)
        for k in range(1, programs + 1):
            sets = list(combinations(has_passed, k))
            share = sum(any(chosen) for chosen in sets) / len(sets)
            assert estimate_pass_at_k(programs, passed, k) == pytest.approx(share, abs=1e-12)


def test_many_programs_do_not_overflow():
    assert estimate_pass_at_k(1000, 1, 100) == pytest.approx(0.1)


@pytest.mark.parametrize(("programs", "ks"), [(1, [1]), (9, [1]), (10, [1, 10]), (200, [1, 10, 100])])
def test_k_is_at_most_the_number_of_programs(programs, ks):
    assert list_ks(programs) == ks

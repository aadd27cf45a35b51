import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimp_tf import PruningConfig
from aimp_tf.plan import imp_epochs, make_plan, survivor_counts


def test_counts_are_those_of_the_formula():
    assert survivor_counts(100, 0.9, 0.2) == [100, 80, 64, 51, 41, 33, 26, 21, 17, 13, 11, 10]
    assert survivor_counts(266_200, 0.9, 0.2)[-2:] == [28_583, 26_620]
    assert survivor_counts(10, 0.5, 0.5) == [10, 5]


@given(
    n=st.integers(1, 10**9),
    sparsity=st.floats(0.01, 0.999),
    rate=st.floats(0.01, 0.99),
)
def test_counts_fall_to_the_target(n, sparsity, rate):
    goal = n - round(sparsity * n)
    if goal in (0, n):
        with pytest.raises(ValueError, match="target_sparsity"):
            survivor_counts(n, sparsity, rate)
        return
    counts = survivor_counts(n, sparsity, rate)
    assert counts[0] == n and counts[-1] == goal
    assert all(before >= after for before, after in zip(counts, counts[1:], strict=False))
    assert all(count > goal for count in counts[:-1])
    assert all(count == max(round(n * (1 - rate) ** i), goal) for i, count in enumerate(counts))


def test_too_slow_a_rate_is_refused():
    with pytest.raises(ValueError, match="more than 10000 rounds"):
        survivor_counts(10**9, 0.999, 1e-5)


def test_nothing_to_remove_or_leave_is_refused():
    with pytest.raises(ValueError, match="removes none of the 10"):
        survivor_counts(10, 0.01, 0.2)
    with pytest.raises(ValueError, match="leaves none of the 10"):
        survivor_counts(10, 0.99, 0.2)


def test_rounds_of_a_run():
    rounds = make_plan(PruningConfig(0.5, epochs=10, round_epochs=4), 1000)
    assert [round_.index for round_ in rounds] == [0, 1, 2, 3, 4]
    assert [round_.kept for round_ in rounds] == [1000, 800, 640, 512, 500]
    assert [round_.epochs for round_ in rounds] == [4, 4, 4, 4, 10]
    assert [round_.schedule_scale for round_ in rounds] == [2.5, 2.5, 2.5, 2.5, 1.0]
    assert imp_epochs(rounds) == 5 * 10


def test_one_shot_is_one_round():
    rounds = make_plan(PruningConfig(0.9, rate=0.9, epochs=10), 1000)
    assert [round_.kept for round_ in rounds] == [1000, 100]


def test_full_rounds_are_plain_imp():
    rounds = make_plan(PruningConfig(0.9, epochs=10, round_epochs=10), 1000)
    assert sum(round_.epochs for round_ in rounds) == imp_epochs(rounds)

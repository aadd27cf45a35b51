import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimp_tf import PruningConfig
from aimp_tf.selection.planning import imp_epochs, least_survivors, make_plan, ramp_survivors, settled, survivor_counts


def counts_of(weights, target_sparsity, rate, granularity="unstructured"):
    config = PruningConfig(target_sparsity, rate=rate, epochs=1, granularity=granularity)
    return survivor_counts(config, weights)


def test_counts_are_those_of_the_formula():
    assert counts_of(100, 0.9, 0.2) == [100, 80, 64, 51, 41, 33, 26, 21, 17, 13, 11, 10]
    assert counts_of(266_200, 0.9, 0.2)[-2:] == [28_583, 26_620]
    assert counts_of(10, 0.5, 0.5) == [10, 5]


def test_counts_of_blocks_are_those_of_the_formula_times_four():
    assert counts_of(400, 0.9, 0.2, "1x4") == [4 * count for count in counts_of(100, 0.9, 0.2)]
    config = PruningConfig(0.9, epochs=10, granularity="1x4")
    # 10 blocks are left of 102, for 0.1 * 102 is 10.2; without blocks it would be 41 weights of 408.
    assert make_plan(config, 408)[-1].kept == 40
    assert make_plan(config.replace(method="gradual"), 408)[-1].kept == 40 == ramp_survivors(config, 408, 1)
    assert imp_epochs(config, 40) == 10 * len(counts_of(10, 0.9, 0.2))
    assert [ramp_survivors(config, 400, progress) for progress in (0, 0.25, 0.5)] == [400, 192, 84]


@given(
    n=st.integers(1, 10**9),
    sparsity=st.floats(0.01, 0.999),
    rate=st.floats(0.01, 0.99),
)
def test_counts_fall_to_the_target(n, sparsity, rate):
    goal = n - round(sparsity * n)
    if goal in (0, n):
        with pytest.raises(ValueError, match="target_sparsity"):
            counts_of(n, sparsity, rate)
        return
    counts = counts_of(n, sparsity, rate)
    assert counts[0] == n and counts[-1] == goal
    assert all(before >= after for before, after in zip(counts, counts[1:], strict=False))
    assert all(count > goal for count in counts[:-1])
    assert all(count == max(round(n * (1 - rate) ** i), goal) for i, count in enumerate(counts))


def test_too_slow_a_rate_is_refused():
    with pytest.raises(ValueError, match="more than 10000 rounds"):
        counts_of(10**9, 0.999, 1e-5)


def test_nothing_to_remove_or_leave_is_refused():
    with pytest.raises(ValueError, match="removes none of the 10"):
        counts_of(10, 0.01, 0.2)
    with pytest.raises(ValueError, match="leaves none of the 10"):
        counts_of(10, 0.99, 0.2)


def test_rounds_of_a_run():
    rounds = make_plan(PruningConfig(0.5, epochs=10, round_epochs=4), 1000)
    assert [round_.index for round_ in rounds] == [0, 1, 2, 3, 4]
    assert [round_.kept for round_ in rounds] == [1000, 800, 640, 512, 500]
    assert [round_.epochs for round_ in rounds] == [4, 4, 4, 4, 10]
    assert {(round_.schedule_start, round_.schedule_scale) for round_ in rounds} == {(0.0, 1.0)}
    assert [round_.rewind for round_ in rounds] == [None] + ["learning_rate"] * 4
    assert imp_epochs(PruningConfig(0.5, epochs=10, round_epochs=4), 1000) == 5 * 10


def test_one_shot_is_one_round():
    rounds = make_plan(PruningConfig(0.9, rate=0.9, epochs=10), 1000)
    assert [round_.kept for round_ in rounds] == [1000, 100]


def test_full_rounds_are_plain_imp():
    config = PruningConfig(0.9, epochs=10, round_epochs=10)
    assert sum(round_.epochs for round_ in make_plan(config, 1000)) == imp_epochs(config, 1000) == 12 * 10


@pytest.mark.parametrize(("method", "kept"), [("gradual", 100), ("dense", 1000)])
def test_other_methods_are_one_fit(method, kept):
    (round_,) = make_plan(PruningConfig(0.9, epochs=10, method=method), 1000)
    assert (round_.epochs, round_.kept, round_.schedule_start, round_.schedule_scale) == (10, kept, 0.0, 1.0)


def test_the_final_training_may_rewind_differently():
    config = PruningConfig(0.5, epochs=10, rewind="weights", final_rewind="learning_rate")
    assert [round_.rewind for round_ in make_plan(config, 1000)] == [None] + ["weights"] * 3 + ["learning_rate"]


@pytest.mark.parametrize(
    ("schedule", "rewind_epoch", "first", "later", "final"),
    [
        # Start and end, in epochs of a schedule made for 12, of rounds of 4 and of the final training of 12.
        ("compress", 0, (0, 12), (0, 12), (0, 12)),
        ("head", 0, (0, 4), (0, 4), (0, 12)),
        ("compress", 1, (0, 12), (3, 12), (1, 12)),
        ("head", 1, (0, 4), (1, 4), (1, 12)),
    ],
)
def test_where_in_the_schedule_a_round_starts_and_ends(schedule, rewind_epoch, first, later, final):
    config = PruningConfig(0.5, epochs=12, round_epochs=4, round_schedule=schedule, rewind_epoch=rewind_epoch)
    rounds = make_plan(config, 1000)
    for round_, (start, end) in zip(rounds, [first, later, later, later, final], strict=True):
        assert round_.schedule_start == pytest.approx(start)
        assert round_.schedule_start + round_.epochs * round_.schedule_scale == pytest.approx(end)


def test_limits_on_single_variables():
    sizes = {"large": 900, "small": 100}
    least = least_survivors(PruningConfig(0.9, epochs=1, max_layer_sparsity=0.95, min_layer_survivors=20), sizes)
    assert least == {"large": 45, "small": 20}
    assert least_survivors(PruningConfig(0.2, epochs=1, max_layer_sparsity=0.29), {"a": 100}) == {"a": 71}
    assert least_survivors(PruningConfig(0.5, epochs=1, min_layer_survivors=20), {"a": 100, "b": 7}) == {
        "a": 20,
        "b": 7,
    }
    with pytest.raises(ValueError, match="keep at least 120 weights, but target_sparsity=0.9 keeps 100 of 1000"):
        least_survivors(PruningConfig(0.9, epochs=1, min_layer_survivors=60), sizes)


def test_limits_in_fours():
    config = PruningConfig(0.5, epochs=1, min_layer_survivors=18, max_layer_sparsity=0.75)
    sizes = {"large": 80, "small": 40}
    assert least_survivors(config.replace(granularity="1x4"), sizes) == {"large": 20, "small": 20}
    assert least_survivors(config.replace(granularity="2:4"), sizes) == {"large": 20, "small": 18}
    with pytest.raises(ValueError, match="at least 21 weights of small, but granularity='2:4' keeps 20 of its 40"):
        least_survivors(config.replace(granularity="2:4", min_layer_survivors=21), sizes)


@pytest.mark.parametrize(
    ("fields", "sizes", "expected"),
    [
        # 0.1 of 0.2 of each, rounded up.
        ({}, {"large": 1000, "small": 100, "tiny": 1}, {"large": 20, "small": 2, "tiny": 1}),
        ({"min_layer_share": 0}, {"large": 1000, "small": 100}, {"large": 0, "small": 0}),
        ({"min_layer_share": 0.5}, {"large": 1000, "small": 101}, {"large": 100, "small": 11}),
        # 0.1 * (1 - 0.7) * 100 is more than 3 in floating point.
        ({"target_sparsity": 0.7}, {"a": 100, "b": 900}, {"a": 3, "b": 27}),
        ({"min_layer_survivors": 5}, {"large": 1000, "small": 100}, {"large": 20, "small": 5}),
        ({"max_layer_sparsity": 0.9}, {"large": 1000, "small": 100}, {"large": 100, "small": 10}),
        ({"granularity": "1x4"}, {"large": 1000, "small": 40}, {"large": 20, "small": 4}),
        ({"granularity": "2:4", "target_sparsity": 0.5}, {"large": 1000, "small": 40}, {"large": 50, "small": 2}),
        # 20 of 100 are kept: fewer than one of each of the 25 variables.
        ({}, {f"v{i}": 4 for i in range(25)}, {f"v{i}": 0 for i in range(25)}),
        # The survivors take 192 of the 200, and the share of the large one, which is 17, gets the other 8.
        (
            {"min_layer_survivors": 2},
            {"large": 810, **{f"v{i}": 2 for i in range(95)}},
            {"large": 10, **{f"v{i}": 2 for i in range(95)}},
        ),
    ],
)
def test_every_variable_keeps_a_share(fields, sizes, expected):
    config = PruningConfig(**{"target_sparsity": 0.8, "epochs": 1, "min_layer_share": 0.1, **fields})
    assert least_survivors(config, sizes) == expected


@given(
    sizes=st.lists(st.integers(1, 50), min_size=1, max_size=30),
    sparsity=st.floats(0.01, 0.99),
    share=st.floats(0, 0.999),
    block=st.sampled_from(["unstructured", "1x4"]),
)
def test_shares_are_never_more_than_is_kept(sizes, sparsity, share, block):
    config = PruningConfig(sparsity, epochs=1, granularity=block, min_layer_share=share)
    unit = config.structure.block
    named = {str(i): size * unit for i, size in enumerate(sizes)}
    blocks = sum(sizes)
    if not 0 < round(sparsity * blocks) < blocks:
        return
    least = least_survivors(config, named)
    assert sum(least.values()) <= make_plan(config, blocks * unit)[-1].kept
    assert all(count % unit == 0 and 0 <= count <= named[path] for path, count in least.items())


def test_the_ramp_is_cubic():
    assert [ramp_survivors(PruningConfig(0.9, epochs=1), 10**6, progress) for progress in (0, 0.25, 0.5, 1)] == [
        10**6,
        479_688,  # 1 - 0.9 * (1 - 0.75**3)
        212_500,
        100_000,
    ]


def test_a_trained_model_has_one_round_less():
    config = PruningConfig(0.5, epochs=10, start="trained")
    rounds = make_plan(config, 1000)
    assert [(round_.index, round_.kept, round_.epochs) for round_ in rounds] == [
        (0, 800, 2),
        (1, 640, 2),
        (2, 512, 2),
        (3, 500, 10),
    ]
    assert [round_.rewind for round_ in rounds] == [None, *["learning_rate"] * 3]
    assert imp_epochs(config, 1000) == 40
    # One that is sparse enough already is trained once.
    assert [round_.kept for round_ in make_plan(config, 1000, first=500)] == [500]
    assert len(make_plan(config.replace(rate=0.5), 1000)) == 1


@given(total=st.integers(1, 400), sparsity=st.floats(0.1, 0.99), start=st.sampled_from(["untrained", "trained"]))
def test_epochs_in_all_are_kept_exactly(total, sparsity, start):
    config = PruningConfig(sparsity, total_epochs=total, start=start)
    trainings = len(make_plan(config.replace(epochs=1, total_epochs=None), 10_000))
    if total < trainings:
        with pytest.raises(ValueError, match=f"Write total_epochs={trainings} or more"):
            settled(config, 10_000)
        return
    lengths = [round_.epochs for round_ in make_plan(settled(config, 10_000), 10_000)]
    assert sum(lengths) == total and len(lengths) == trainings
    assert len(set(lengths[:-1])) <= 1
    # As much as can be of the share that a round has by default.
    if len(lengths) > 1:
        assert lengths[-1] >= lengths[0] and (lengths[0] == 1 or lengths[-1] >= 5 * lengths[0])
        assert lengths[-1] < 5 * (lengths[0] + 1) + trainings


def test_epochs_in_all_with_other_settings():
    config = PruningConfig(0.9, total_epochs=40)
    assert settled(config.replace(method="gradual"), 1000).epochs == 40
    fixed = settled(config.replace(round_epochs=2), 1000)
    assert (fixed.round_epochs, fixed.epochs, fixed.total_epochs) == (2, 18, None)
    with pytest.raises(ValueError, match="11 rounds of 4 .* Write total_epochs=48 or more"):
        settled(config.replace(round_epochs=4), 1000)
    with pytest.raises(ValueError, match="rewind_epoch must lie between 0 and 1"):
        settled(config.replace(rewind_epoch=3), 1000)
    assert settled(PruningConfig(0.9, epochs=3), 1000) == PruningConfig(0.9, epochs=3)

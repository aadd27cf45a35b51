import numpy as np
import pytest

import aimp_tf
from aimp_tf.config.checks import CHOICES
from aimp_tf.selection.criteria import CRITERIA, Lamp, criterion_of
from aimp_tf.selection.criterion import scores_of
from aimp_tf.selection.statistics import Statistics

WEIGHTS = {"a": np.array([[3.0, -1.0], [0.5, 2.0]], np.float32), "b": np.array([10.0, -20.0], np.float32)}
MASKS = {path: np.ones(weight.shape, bool) for path, weight in WEIGHTS.items()}


def scores(criterion, weights=WEIGHTS, masks=MASKS, seed=0):
    return scores_of(criterion_of(criterion), Statistics(weights, masks, np.random.default_rng(seed)))


def test_every_name_of_a_config_is_a_criterion():
    assert set(CHOICES["criterion"]) == set(CRITERIA)
    public = {getattr(aimp_tf.criteria, name) for name in aimp_tf.criteria.__all__}
    assert set(CRITERIA.values()) <= public and aimp_tf.Criterion in public


def test_magnitudes_are_the_weights_without_their_signs():
    assert scores("magnitude") is WEIGHTS and not criterion_of("magnitude").signed


def test_lamp_is_its_formula():
    masks = {"a": np.array([[True, True], [True, False]]), "b": MASKS["b"]}
    result = scores("lamp", masks=masks)
    assert criterion_of("lamp").signed
    np.testing.assert_allclose(result["a"], [[1, 1 / 10], [0.25 / 10.25, 0]])
    np.testing.assert_allclose(result["b"], [100 / 500, 1])


def test_lamp_against_a_loop():
    rng = np.random.default_rng(0)
    weight, mask = rng.integers(-5, 6, 40) / 4, rng.random(40) < 0.7
    order = sorted(np.flatnonzero(mask), key=lambda i: (-abs(weight[i]), i))
    result = scores("lamp", {"w": weight}, {"w": mask})["w"]
    for rank, i in enumerate(order):
        total = sum(weight[j] ** 2 for j in order[: rank + 1])
        assert result[i] == pytest.approx(weight[i] ** 2 / total if total else 0)


def test_lamp_of_nothing_but_zeros_is_zero():
    assert scores(Lamp(), {"w": np.zeros(3)}, {"w": np.ones(3, bool)})["w"].tolist() == [0, 0, 0]


def test_lots_depend_on_the_seed_alone():
    first, again, other = scores("random"), scores("random"), scores("random", seed=1)
    np.testing.assert_array_equal(first["a"], again["a"])
    assert not np.array_equal(first["a"], other["a"])


def test_a_function_gives_signed_scores():
    def unchanged(weights, masks):
        return weights

    assert criterion_of(unchanged).signed
    np.testing.assert_array_equal(scores(unchanged)["a"], WEIGHTS["a"])


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda weights, masks: None, TypeError, "must return a dict.*got NoneType"),
        (lambda weights, masks: {"a": weights["a"]}, ValueError, "missing: b; unknown: none"),
        (lambda weights, masks: {**weights, "c": 1}, ValueError, "missing: none; unknown: c"),
        (lambda weights, masks: {**weights, "a": weights["b"]}, ValueError, r"a has shape \(2, 2\) .* \(2,\)"),
        (
            lambda weights, masks: {**weights, "b": weights["b"] * np.nan},
            ValueError,
            "NaN or infinity for survivors of b",
        ),
        (lambda weights, masks: {**weights, "b": ["x", "y"]}, TypeError, "b got list"),
    ],
)
def test_functions_that_cannot_rank_are_refused(function, error, message):
    with pytest.raises(error, match=message):
        scores(function)


def test_what_is_pruned_needs_no_score():
    masks = {**MASKS, "b": np.array([True, False])}
    scores(lambda weights, masks: {**weights, "b": np.array([1.0, np.nan])}, masks=masks)

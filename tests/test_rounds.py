import dataclasses
import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import aimp_tf
from aimp_tf.selection.ranking import smallest_magnitude
from aimp_tf.training.rounds import (
    MAGNITUDE_EDGES,
    LayerResult,
    RoundResult,
    by_split,
    metric_text,
    percent_text,
    round_table,
    telling_metric,
)


def test_magnitudes_of_survivors_are_counted():
    weight = np.array([[0.5, -0.5, 0.25], [1.0, 0.0, 100.0]], "float32")
    mask = np.array([[True, True, True], [False, True, True]])
    layer = LayerResult.of("a/kernel", weight, mask, threshold=0.25)
    assert (layer.kept, layer.size, layer.sparsity) == (5, 6, pytest.approx(1 / 6))
    counted = {MAGNITUDE_EDGES[place]: count for place, count in enumerate(layer.magnitudes) if count}
    assert counted == {2.0**-20: 1, 0.25: 1, 0.5: 2, MAGNITUDE_EDGES[-2]: 1}


def test_counting_takes_as_little_memory_for_large_layers_and_misses_nothing():
    """Of two million weights, 8 MB, of which every third is masked: zeros, denormals and infinities among them."""
    special = np.array([0.0, -0.0, 1e-45, -1e-39, 2.0**-20, -(2.0**4), 3e38, np.inf, -np.inf], "float32")
    weight = np.random.default_rng(0).normal(size=(1000, 2000)).astype("float32") ** 3
    weight.reshape(-1)[::7][: special.size * 1000] = np.tile(special, 1000)
    mask = np.arange(weight.size).reshape(weight.shape) % 3 > 0
    tracemalloc.start()
    layer = LayerResult.of("a/kernel", weight, mask, None)
    smallest = smallest_magnitude(weight, mask)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    with np.errstate(divide="ignore"):
        quarters = np.floor(np.log2(np.abs(weight[mask])) * 4)
    expected = [np.count_nonzero(np.clip(quarters, -80, 15) == quarter) for quarter in range(-80, 16)]
    assert layer.magnitudes == tuple(expected) and layer.kept == sum(expected) == np.count_nonzero(mask)
    assert smallest == np.abs(weight[mask]).min() == 0.0 and smallest_magnitude(weight, weight == 7) is None
    assert peak < 4e6


@given(st.lists(st.floats(2.0**-19, 15.0, width=32), min_size=1, max_size=50), st.sampled_from(["float32", "float64"]))
def test_a_magnitude_lies_between_the_edges_of_its_bin(values, dtype):
    weight = np.array(values, dtype)
    magnitudes = np.array(LayerResult.of("a", weight, np.ones(len(values), bool), None).magnitudes)
    # At an edge, which float32 does not hold exactly, a value may fall on either side.
    slack = 1e-5
    edges = np.array(MAGNITUDE_EDGES)
    assert magnitudes.sum() == len(values)
    for place in np.flatnonzero(magnitudes):
        low, high = edges[place] * (1 - slack), edges[place + 1] * (1 + slack)
        assert np.count_nonzero((weight >= low) & (weight < high)) >= magnitudes[place]


def test_results_come_back_from_json():
    masks = {"a": np.array([True, False]), "b": np.array([[False]])}
    weights = {"a": np.array([0.3, 0.1], "float32"), "b": np.array([[0.2]], "float32")}
    result = RoundResult.of(
        3, [{"loss": 0.1, "per_class": [1.0, 2.0]}], weights, masks, 1.25, thresholds=[0.3, None], guarded=("a",)
    )
    assert result.emptied == ("b",) and (result.kept, result.epochs) == (1, 1) and result.sparsity == 1 - 1 / 3
    fields = json.loads(json.dumps(dataclasses.asdict(result)))
    assert RoundResult.from_fields(fields) == result
    for change in ({"kept": 9}, {"magnitudes": [1, 2]}, {"shape": ["x"]}):
        with pytest.raises((TypeError, ValueError)):
            RoundResult.from_fields({**fields, "layers": [{**fields["layers"][0], **change}]})


def test_the_table_tells_what_weights_were_shrunk_to():
    first, last = (
        RoundResult.of(
            index,
            [{"loss": 0.5}] * 2,
            {name: np.ones(5) for name in "ab"},
            {name: np.arange(5) > 0 for name in "ab"},
            1.5,
            shrink={"a": 1 - 0.3 * index},
        )
        for index in (0, 1)
    )
    assert round_table([first, last]) == [
        ["round", "epochs", "kept", "sparsity", "shrunk to", "seconds", "loss"],
        ["1", "2", "8", "20.00%", "100%", "1.5", "0.5000"],
        ["last", "2", "8", "20.00%", "70.0% to 100.0%", "1.5", "0.5000"],
    ]
    assert round_table([first]) == [
        ["round", "epochs", "kept", "sparsity", "seconds", "loss"],
        ["last", "2", "8", "20.00%", "1.5", "0.5000"],
    ]


def test_logs_are_split():
    assert by_split({"loss": 1, "val_loss": 2, "validity": 3}) == {
        "train": {"loss": 1, "validity": 3},
        "validation": {"loss": 2},
    }


def test_thresholds_are_the_smallest_magnitudes_that_ranking_kept(make_mlp, blobs):
    settings = {"target_sparsity": 0.75, "rate": 0.5, "epochs": 1, "verbose": 0, "seed": 0}
    model = make_mlp()
    model.optimizer.learning_rate = 0.0  # So that what is ranked is known.
    kernels = [np.abs(weight) for weight in model.get_weights() if np.ndim(weight) == 2]
    first = dict(zip(("hidden/kernel", "logits/kernel"), kernels, strict=True))
    result = aimp_tf.prune(model, blobs, **settings)
    assert [layer.threshold for layer in result.rounds[0].layers] == [None, None]
    for layer in result.rounds[-1].layers:
        assert layer.threshold == first[layer.path][result.masks[layer.path]].min()
        assert layer.threshold > first[layer.path][~result.masks[layer.path]].max()
        assert layer.kept == np.count_nonzero(result.masks[layer.path]) == sum(layer.magnitudes)


def test_a_word_of_its_name_says_that_a_metric_is_an_accuracy():
    for name in ("accuracy", "val_sparse_categorical_accuracy", "head_acc"):
        assert metric_text(name, 0.125) == "12.50%"
    for name in ("acceleration_mae", "val_vaccine_loss"):
        assert metric_text(name, 0.125) == "0.1250"


def test_percents_tell_a_part_from_all():
    texts = [percent_text(fraction, 1) for fraction in (0.0, 0.6723, 0.9994, 0.9996, 0.9999999, 1.0)]
    assert texts == ["0.0%", "67.2%", "99.9%", "99.96%", "99.99999%", "100.0%"]


def test_the_metric_that_tells_most():
    assert telling_metric(["loss", "accuracy", "val_loss", "val_auc", "val_accuracy"]) == "val_auc"
    assert telling_metric(["loss", "accuracy", "val_loss"]) == "accuracy"
    assert telling_metric(["loss", "mask_distance", "val_loss"]) == "val_loss"
    assert telling_metric(["loss"]) == "loss" and telling_metric([]) is None

import copy
import dataclasses
import re
import xml.etree.ElementTree

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

import aimp_tf
from aimp_tf import PruningConfig, PruningResult, RoundResult


def test_summary_shows_rounds_layers_and_cost():
    masks = {"a/kernel": np.array([[True, True], [False, False]]), "b/kernel": np.zeros(4, bool)}
    dense = {path: np.ones(mask.shape, bool) for path, mask in masks.items()}
    weights = {path: np.full(mask.shape, 0.5, "float32") for path, mask in masks.items()}
    rounds = [
        RoundResult.of(0, [{"loss": 0.75}, {"loss": 0.5, "accuracy": 0.75}], weights, dense, 1.5),
        RoundResult.of(
            1,
            [{"loss": 0.25, "accuracy": 1.0}] * 6,
            weights,
            masks,
            2.5,
            thresholds=[0.125, None],
            guarded=("a/kernel",),
        ),
    ]
    config = PruningConfig(target_sparsity=0.75, epochs=6, round_epochs=2)
    result = PruningResult(model=None, masks=masks, rounds=rounds, sparsity=0.75, imp_epochs=12, config=config)
    assert result.epochs == 8 and result.seconds == 4.0
    assert result.summary().splitlines() == [
        "round  epochs  kept  sparsity  seconds    loss  accuracy",
        "1           2     8     0.00%      1.5  0.5000    75.00%",
        "last        6     2    75.00%      2.5  0.2500   100.00%",
        "",
        "variable  shape  kept  sparsity  threshold",
        "a/kernel  2 x 2     2    50.00%      0.125",
        "b/kernel      4     0   100.00%           ",
        "",
        "Nothing is left of: b/kernel.",
        "",
        "Kept above their rank by the limits on single variables: a/kernel.",
        "",
        "75.00% of the prunable weights are zero, after 8 epochs in 4 s; plain iterative magnitude pruning trains "
        "for 12.",
    ]


@pytest.fixture
def result(make_mlp, blobs):
    settings = {"target_sparsity": 0.75, "rate": 0.5, "epochs": 2, "round_epochs": 1, "verbose": 0}
    return aimp_tf.prune(make_mlp(), *blobs, validation_data=blobs, dense_baseline=1, **settings)


def test_a_result_is_short_to_look_at(result):
    last = result.rounds[-1].metrics
    assert repr(result) == (
        f"PruningResult(75.0% sparse, val_accuracy {last['val_accuracy']:.4f}, 44 of 176 weights left, 3 trainings, "
        "4 epochs; see .summary(), .plot(), .report('page.html'))"
    )
    assert len(repr(result.rounds)) < 2000 and "magnitudes" not in repr(result.rounds[0].layers)


def test_an_attribute_that_is_missing_within_it_is_named(result, monkeypatch):
    monkeypatch.setattr(aimp_tf.PruningResult, "epochs", property(lambda self: self.rounds.missing))
    with pytest.raises(AttributeError, match="'list' object has no attribute 'missing'"):
        result.epochs
    assert not hasattr(result, "save") and copy.deepcopy(dataclasses.replace(result, model=None)).sparsity == 0.75
    assert not hasattr(dataclasses.replace(result, model=None), "predict")


def test_a_notebook_shows_the_answer_a_table_and_a_curve(result):
    page = result._repr_html_()
    # Elements of HTML that are never closed.
    root = xml.etree.ElementTree.fromstring("<div>" + re.sub(r"<img ([^>]*)>", r"<img \1/>", page) + "</div>")
    texts = [paragraph.text for paragraph in root.iter("p")]
    accuracy = result.rounds[-1].metrics["val_accuracy"]
    assert texts[0].startswith(f"75.0% of the prunable weights are gone, and the validation accuracy is {accuracy:.1%}")
    assert any(text.startswith("The dense model, after 1 epoch: ") for text in texts)
    assert any(text.startswith("A .keras file of it takes ") for text in texts)
    rows = [[cell.text for cell in row] for row in root.iter("tr")]
    assert [row[0] for row in rows] == ["round", "1", "2", "last"]
    (image,) = root.iter("img")
    assert image.get("src").startswith("data:image/svg+xml;base64,")


def test_a_plot_is_drawn_on_axes_that_one_gives_or_gets(result):
    axes = Figure().add_subplot()
    assert result.plot(axes=axes) is axes
    (line,) = [drawn for drawn in axes.get_lines() if len(drawn.get_xdata()) == 3]
    np.testing.assert_allclose(line.get_ydata(), [round_.metrics["val_accuracy"] for round_ in result.rounds])
    np.testing.assert_allclose(1 - 10.0 ** -np.asarray(line.get_xdata()), [0, 0.5, 0.75])
    dense = [drawn for drawn in axes.get_lines() if drawn.get_label() == "dense"]
    assert list(dense[0].get_ydata()) == [result.outcome.dense_metrics["val_accuracy"]] * 2
    matplotlib.use("agg")
    assert result.plot("loss").get_ylabel() == "loss"
    with pytest.raises(ValueError, match="No run has the metric 'acuracy'; .*Did you mean 'accuracy'"):
        result.plot("acuracy")


def test_the_compacted_model_is_smaller(result):
    assert result.compact().count_params() <= result.model.count_params()

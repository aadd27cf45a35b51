import numpy as np
import pytest

import aimp_tf


def test_a_plan_shows_what_a_run_does(make_mlp, blobs):
    """Made-up data: this tests mechanics only."""
    settings = {"target_sparsity": 0.75, "rate": 0.5, "epochs": 2, "round_epochs": 1}
    model = make_mlp()
    before = model.get_weights()
    plan = aimp_tf.plan(model, **settings)
    assert str(plan).splitlines() == [
        "3 trainings, 4 epochs, 75.0% of 176 weights; plain iterative magnitude pruning trains for 6.",
        "",
        "round  weights kept  sparsity  epochs",
        "1               176      0.0%       1",
        "2                88     50.0%       1",
        "last             44     75.0%       2",
    ]
    assert "last             44" in plan._repr_html_()
    for here, there in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(here, there)
    result = aimp_tf.prune(model, *blobs, **settings, verbose=0)
    assert [(round_.kept, round_.epochs) for round_ in result.rounds] == [
        (round_.kept, round_.epochs) for round_ in plan.rounds
    ]
    assert (plan.epochs, plan.imp_epochs) == (result.epochs, result.imp_epochs)


def test_a_plan_heeds_all_settings(make_mlp):
    model = make_mlp()
    settings = {"target_sparsity": 0.75, "rate": 0.5}
    assert aimp_tf.plan(model, **settings, total_epochs=20, start="trained").epochs == 20
    config = aimp_tf.PruningConfig(0.75, rate=0.5, epochs=3, exclude=("logits/*",))
    assert aimp_tf.plan(model, config).weights == 128
    assert aimp_tf.plan(model, config, method="gradual").rounds[0].epochs == 3
    assert str(aimp_tf.plan(model, config, method="gradual")).startswith(
        "1 training, 3 epochs, 75.0% of 128 weights.\n"
    )
    hidden = model.get_layer("hidden").kernel
    hidden.assign(np.where(np.arange(128).reshape(8, 16) < 64, 0, np.array(hidden)))
    assert [round_.kept for round_ in aimp_tf.plan(model, config, masks="zeros").rounds] == [64, 32]
    masks = {"hidden/kernel": np.arange(128).reshape(8, 16) < 48}
    assert [round_.kept for round_ in aimp_tf.plan(model, config, masks=masks).rounds] == [48, 32]


def test_what_prune_refuses_a_plan_refuses(make_mlp, K):
    for settings, message in (
        ({"target_sparsity": 90, "epochs": 3}, "Write target_sparsity=0.9"),
        ({"target_sparsity": 0.9, "total_epochs": 3}, "Write total_epochs=12 or more"),
        ({"target_sparsity": 0.9, "epochs": 3, "min_layer_survivors": 99}, "Relax them or lower target_sparsity"),
    ):
        with pytest.raises(ValueError, match=message):
            aimp_tf.plan(make_mlp(), **settings)
    for masks, error, message in (
        ("zeroes", TypeError, "must be None, 'zeros', or a dict"),
        ({"hidden/kernel": np.ones((3, 3), bool)}, ValueError, r"of shape \(8, 16\); got bool of shape \(3, 3\)"),
        ({"other": np.ones((3, 3), bool)}, ValueError, "must be of the prunable variables hidden/kernel"),
    ):
        with pytest.raises(error, match=message):
            aimp_tf.plan(make_mlp(), target_sparsity=0.9, epochs=3, masks=masks)
    with pytest.raises(ValueError, match="has no weights yet"):
        aimp_tf.plan(K.Sequential([K.layers.Dense(3)]), target_sparsity=0.9, epochs=3)


def test_a_callback_of_ones_own_is_told_lengths(make_mlp):
    with pytest.raises(ValueError, match="total_epochs is for aimp_tf.prune.*epochs and round_epochs to write"):
        aimp_tf.GlobalMagnitudePruning(target_sparsity=0.9, total_epochs=20)

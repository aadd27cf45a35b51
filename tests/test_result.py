import numpy as np

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

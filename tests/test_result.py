import numpy as np

from aimp_tf import PruningResult, RoundResult


def test_summary_shows_rounds_layers_and_cost():
    rounds = [
        RoundResult(0, epochs=2, kept=8, sparsity=0.0, seconds=1.5, metrics={"loss": 0.5, "accuracy": 0.75}),
        RoundResult(
            1,
            epochs=6,
            kept=2,
            sparsity=0.75,
            seconds=2.5,
            metrics={"loss": 0.25, "accuracy": 1.0},
            emptied=("b/kernel",),
        ),
    ]
    masks = {"a/kernel": np.array([[True, True], [False, False]]), "b/kernel": np.zeros(4, bool)}
    result = PruningResult(model=None, masks=masks, rounds=rounds, sparsity=0.75, imp_epochs=12)
    assert result.epochs == 8 and result.seconds == 4.0
    assert result.summary().splitlines() == [
        "round  epochs  kept  sparsity  seconds    loss  accuracy",
        "0           2     8    0.0000      1.5  0.5000    0.7500",
        "final       6     2    0.7500      2.5  0.2500    1.0000",
        "",
        "variable  shape  kept  sparsity",
        "a/kernel  2 x 2     2    0.5000",
        "b/kernel      4     0    1.0000",
        "",
        "Nothing is left of: b/kernel.",
        "",
        "75.00% of the prunable weights are zero, after 8 epochs in 4 s; plain iterative magnitude pruning trains "
        "for 12.",
    ]

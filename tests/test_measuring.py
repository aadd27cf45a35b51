import numpy as np

from aimp_tf.exporting.compaction import compact_and_report
from aimp_tf.reports.measuring import measure_calls, measure_sizes
from aimp_tf.runs.outcome import Outcome


def pruned(make_mlp):
    """A model of which half of the hidden units are dead."""
    model = make_mlp()
    masks = {"hidden/kernel": np.ones((8, 16), bool), "logits/kernel": np.arange(48).reshape(16, 3) < 24}
    for path, mask in masks.items():
        kernel = model.get_layer(path.split("/")[0]).kernel
        kernel.assign(np.where(mask, np.array(kernel), 0))
    return model, masks


def test_sizes_are_those_of_files_and_the_model_stays_as_it_is(make_mlp, tmp_path):
    model, masks = pruned(make_mlp)
    before = model.get_weights()
    measured = measure_sizes(model, masks)
    for here, there in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(here, there)
    assert measured["bytes"][0] == measured["bytes"][1] > 4 * sum(weight.size for weight in before)
    assert 0 < measured["gzip_bytes"][1] < measured["gzip_bytes"][0] < measured["bytes"][0]
    assert measured["multiply_adds"] == compact_and_report(model)[1].multiply_adds == (8 * 16 + 16 * 3, 8 * 8 + 8 * 3)
    outcome = Outcome(**measured)
    assert Outcome.from_fields(outcome.to_fields()) == outcome


def test_calls_are_timed_in_turn(make_mlp):
    model, _ = pruned(make_mlp)
    outcome = Outcome(**measure_calls(model))
    dense, now = outcome.call_seconds
    assert len(dense) == len(now) >= 10 and min(*dense, *now) > 0 and outcome.call.startswith("1 example on")


def test_what_cannot_be_measured_is_left_out(K):
    class Own(K.Model):
        def __init__(self, size):
            super().__init__()
            self.logits = K.layers.Dense(size)
            self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

        def call(self, inputs):
            return self.scale * self.logits(inputs)

        def get_config(self):
            raise NotImplementedError

    model = Own(3)
    model(np.zeros((2, 8), "float32"))
    assert "multiply_adds" not in measure_sizes(model, {"logits/kernel": np.ones((8, 3), bool)})
    assert measure_calls(model) == {}

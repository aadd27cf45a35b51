import numpy as np
import pytest
import tensorflow as tf

from aimp_tf.compat.optimizer import stretchable


def schedules(K):
    schedules = K.optimizers.schedules
    return [
        schedules.ExponentialDecay(0.1, 10, 0.5),
        schedules.PiecewiseConstantDecay([10, 20], [1.0, 0.1, 0.01]),
        schedules.CosineDecay(0.1, 30),
        schedules.PolynomialDecay(0.1, 30),
    ]


def test_scale_one_is_the_schedule_itself(K):
    for schedule in schedules(K):
        stretched = stretchable(schedule)
        assert isinstance(stretched, K.optimizers.schedules.LearningRateSchedule)
        assert stretched.get_config() == schedule.get_config()
        assert all(getattr(stretched, name) is value for name, value in vars(schedule).items())
        for step in (0, 1, 9, 10, 11, 29, 30):
            assert float(stretched(tf.constant(step, tf.int64))) == float(schedule(tf.constant(step, tf.int64)))


@pytest.mark.parametrize("scale", [5.0, 3.75])
def test_compressed_steps(K, scale):
    for schedule in schedules(K):
        stretched = stretchable(schedule)
        stretched.stretch(scale, 0.0)
        for step in range(8):
            expected = float(schedule(tf.constant(int(step * scale), tf.int64)))
            assert float(stretched(tf.constant(step, tf.int64))) == expected


def test_a_new_scale_needs_no_new_trace(K):
    stretched = stretchable(K.optimizers.schedules.PolynomialDecay(1.0, 100, 0.0))
    traces = []

    @tf.function
    def rate(step):
        traces.append(1)
        return stretched(step)

    rates = []
    for scale in (1.0, 2.0, 10.0):
        stretched.stretch(scale, 0.0)
        rates.append(float(rate(tf.constant(5, tf.int64))))
    np.testing.assert_allclose(rates, [0.95, 0.9, 0.5], rtol=1e-6)
    assert len(traces) == 1


def test_only_schedules_are_stretched(K):
    assert all(stretchable(schedule).original is schedule for schedule in schedules(K))
    assert stretchable(0.1) is None and stretchable(lambda: 0.1) is None


def test_a_start_elsewhere(K):
    for schedule in schedules(K):
        stretched = stretchable(schedule)
        stretched.stretch(2 / 3, 12.0)
        for step, position in ((0, 12), (1, 12), (2, 13), (3, 14), (30, 32)):
            expected = float(schedule(tf.constant(position, tf.int64)))
            assert float(stretched(tf.constant(step, tf.int64))) == expected


def test_rounding_loses_no_step(K):
    assert 45 * (7 / 5) < 63
    stretched = stretchable(K.optimizers.schedules.PiecewiseConstantDecay([62], [1.0, 0.1]))
    stretched.stretch(7 / 5, 0.0)
    assert float(stretched(tf.constant(45, tf.int64))) == pytest.approx(0.1)

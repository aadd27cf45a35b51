"""Channels that single steps leave out, and what those that they run contribute to the loss."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import tensorflow as tf

from aimp_tf.compat.step import forget_traced
from aimp_tf.masking import MaskedModel
from aimp_tf.selection.channels import ChannelUnits
from aimp_tf.training.listening import listening, reading_layers


class Gates:
    """Multiplies what reads the channels of a model masked by whole channels by 0 or 1, while it is `installed`.

    Raises:
        ValueError: It is on several devices, or has layers that read channels in a way that is not known here.
    """

    def __init__(self, masked: MaskedModel) -> None:
        assert isinstance(masked.units, ChannelUnits)
        masked.cluster.check_one_device("method='dynamic'")
        masked.units.check_read()
        self._units, self._read = masked.units, masked.units.read_by()
        layers = reading_layers(masked)
        self._open = tf.Variable(tf.ones([self._units.count]), trainable=False)
        self._sums = tf.Variable(tf.zeros([self._units.count]), trainable=False)
        self.installed, self._installed = True, contextlib.ExitStack()
        self._installed.callback(setattr, self, "installed", False)
        masked.while_masked.enter_context(self._installed)
        self._installed.callback(forget_traced, masked.model, evaluations=True)
        self._installed.enter_context(listening({path: layers[path] for path in self._read}, self._through))
        forget_traced(masked.model, evaluations=True)

    def remove(self) -> None:
        """Lets all channels through, and `fit` trace its step anew."""
        self._installed.close()

    def let_through(self, kept: np.ndarray) -> None:
        """Opens these channels, bool (units,), and closes the others."""
        self._open.assign(kept.astype(np.float32))

    def contributions(self) -> np.ndarray:
        """Of each channel, the mean over the examples since the last call of |sum over positions of a * dl/da|, up to a
        factor that is the same for all; float32 (units,). l is the loss, and a what reads the channel gets."""
        values = self._sums.numpy()
        self._sums.assign(tf.zeros_like(self._sums))
        return values

    def _through(self, path: str, inputs: tf.Tensor) -> tf.Tensor:
        units = self._read[path]
        openness = tf.gather(tf.concat([self._open, [1.0]], 0), np.where(units < 0, self._units.count, units))
        positions = list(range(1, len(inputs.shape) - 1))

        @tf.custom_gradient
        def gated(values: tf.Tensor) -> Any:
            def gradient(upstream: tf.Tensor) -> tf.Tensor:
                products = tf.cast(values, tf.float32) * tf.cast(upstream, tf.float32)
                of_examples = tf.transpose(tf.reduce_sum(products, positions))
                # What Flatten has made several inputs of is one channel.
                summed = tf.math.unsorted_segment_sum(of_examples, units, self._units.count)
                self._sums.assign_add(tf.reduce_sum(tf.abs(summed), axis=1))
                return upstream * tf.cast(openness, upstream.dtype)

            return values * tf.cast(openness, values.dtype), gradient

        return gated(inputs)

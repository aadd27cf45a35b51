"""Rounds that train without dead channels: mechanics only, on made-up data, unless a test says otherwise."""

import importlib
import re

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from test_compaction import GENERATIONS, Network

import aimp_tf
from aimp_tf import GlobalMagnitudePruning, PruningConfig
from aimp_tf.compaction.training import live_part
from aimp_tf.experiments import models
from aimp_tf.masked_model import MaskedModel, mask_model
from aimp_tf.model_graph import ModelGraph

SETTINGS = {"target_sparsity": 0.9, "rate": 0.5, "epochs": 3, "round_epochs": 2, "verbose": 0, "seed": 0}


def part_of(masked):
    return live_part(ModelGraph.of(masked.original, masked=True), masked)


def train(masked, inputs, targets, part=None):
    """Trains a masked model, or a part of it, and gives losses, weights and slots. It is as before then."""
    before = masked.snapshot()
    if part is not None:
        masked.train_part(part.weights, part.attributes)
    history = masked.model.fit(inputs, targets, batch_size=4, epochs=2, shuffle=False, verbose=0)
    masked.make_whole()
    slots = {key: [np.array(slot.numpy()) for slot in slots] for key, slots in masked.optimizer.slots().items()}
    results = history.history["loss"], masked.snapshot(), slots
    masked.restore(before)
    masked.optimizer.reset()
    return results


def check_same(masked, inputs, targets):
    """Checks that training the live part is training the whole model, but for rounding. Gives the part."""
    part = part_of(masked)
    before = masked.snapshot()
    losses, weights, slots = train(masked, inputs, targets)
    assume(np.isfinite(losses).all() and losses[-1] < 1e3)
    part_losses, part_weights, part_slots = train(masked, inputs, targets, part)
    np.testing.assert_allclose(part_losses, losses, rtol=1e-4, atol=1e-6)
    stays = {id(variable): np.ix_(*indices) for variable, indices in part.weights}
    variables = [variable for variable in masked.original.weights if hasattr(variable, "assign")]
    for variable, first, whole, small in zip(variables, before, weights, part_weights, strict=True):
        if "moving_" in variable.name and id(variable) in stays:
            # Nothing reads the others, which go on moving in the whole model only.
            np.testing.assert_array_equal(
                np.delete(small, stays[id(variable)][0]), np.delete(first, stays[id(variable)][0])
            )
            whole, small = whole[stays[id(variable)]], small[stays[id(variable)]]
        np.testing.assert_allclose(small, whole, rtol=0, atol=1e-6 + 1e-4 * np.abs(whole).max(initial=0))
    for key, wholes in slots.items():  # Those of pruned weights matter to nobody.
        for whole, small in zip(wholes, part_slots[key], strict=True):
            whole, small = whole[stays.get(key, ...)], small[stays.get(key, ...)]
            np.testing.assert_allclose(small, whole, rtol=0, atol=1e-6 + 1e-3 * np.abs(whole).max(initial=0))
    return part


@settings(
    max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True, phases=[Phase.generate]
)
@given(data=st.data(), generation=st.sampled_from(GENERATIONS))
def test_any_network_trains_the_same(data, generation):
    keras = importlib.import_module(generation)
    network = Network(data.draw, keras)
    model = network.model()
    network.kill(model)
    for layer in model._flatten_layers():
        if type(layer).__name__ == "Dropout":
            layer.rate = 0.0  # What it draws depends on the number of channels.
    model.compile(keras.optimizers.SGD(1e-3, momentum=0.9), "mse")
    masked = mask_model(model)
    masked.set_masks({path: weight != 0 for path, weight in masked.weights().items()})
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(10, 5, 5, 2)).astype(np.float32)
    targets = [np.zeros(np.shape(output), np.float32) for output in tf.nest.flatten(model(inputs))]
    check_same(masked, inputs, targets if len(targets) > 1 else targets[0])

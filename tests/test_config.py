import dataclasses
import functools
import json
import sys
import typing

import pytest
from absl import flags
from ml_collections import config_flags

from aimp_tf import PruningConfig
from aimp_tf.config import kept_defaults, upgrade
from aimp_tf.config.structure import Structure


def config(**fields):
    return PruningConfig(**{"target_sparsity": 0.9, "epochs": 10, **fields})


def test_defaults_are_valid_and_rounds_take_a_fifth():
    config().validate()
    assert [config(epochs=epochs).resolved_round_epochs for epochs in (1, 5, 6, 30)] == [1, 1, 2, 6]
    assert config(round_epochs=3).resolved_round_epochs == 3


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"target_sparsity": 0.0}, ValueError, "target_sparsity must lie in"),
        ({"target_sparsity": 1.0}, ValueError, "target_sparsity must lie in"),
        ({"target_sparsity": 90}, ValueError, "fraction, not percent"),
        ({"target_sparsity": float("nan")}, ValueError, "target_sparsity must lie in"),
        ({"target_sparsity": "0.9"}, TypeError, "must be a number"),
        ({"rate": 0.0}, ValueError, "rate must lie in"),
        ({"rate": 1.5}, ValueError, "rate must lie in"),
        ({"epochs": 0}, ValueError, "epochs must be at least 1"),
        ({"epochs": 2.5}, TypeError, "epochs must be a whole number"),
        ({"epochs": True}, TypeError, "epochs must be a whole number"),
        ({"total_epochs": 20}, ValueError, "Either epochs.* or total_epochs.*; got epochs=10, total_epochs=20"),
        ({"epochs": None}, ValueError, "Either epochs"),
        ({"epochs": None, "total_epochs": 0}, ValueError, "total_epochs must be at least 1; got 0"),
        ({"start": "trained", "rewind_epoch": 1}, ValueError, "With start='trained'.*must be 0; got 1"),
        ({"method": "gradual", "rate": 0.3, "shrink": 1.0}, ValueError, "no use for rate=0.3, shrink=1.0. Leave out"),
        ({"method": "dense", "ramp": 0.4, "scope": "layer"}, ValueError, "no use for ramp=0.4, scope='layer'. Leave"),
        ({"ramp": 0.4}, ValueError, "method='iterative' has no use for ramp=0.4"),
        ({"target_sparsity": 90}, ValueError, "Write target_sparsity=0.9: it is a fraction"),
        ({"target_sparsity": "90%"}, TypeError, "Write target_sparsity=0.9: it is a fraction"),
        ({"target_sparsity": 0}, ValueError, r"in \(0, 1\); got 0\.$"),
        ({"round_epochs": 11}, ValueError, "between 1 and epochs=10"),
        ({"round_epochs": 0}, ValueError, "round_epochs must be at least 1; got 0"),
        ({"rewind_epoch": 2}, ValueError, "between 0 and 1, .*round_epochs=2; got 2"),
        ({"rewind_epoch": -1}, ValueError, "between 0 and 1, .*round_epochs=2; got -1"),
        ({"rewind_epoch": None}, TypeError, "rewind_epoch must be a whole number"),
        ({"final_rewind": "weight"}, ValueError, "Did you mean 'weights'"),
        (
            {"method": "iterativ"},
            ValueError,
            "method must be one of 'iterative', 'gradual', 'soft', 'dynamic', 'dense'; got",
        ),
        ({"method": "tfmot"}, ValueError, "Write method='gradual', .*tools/benchmark.py peers has tfmot itself"),
        ({"ramp": 0}, ValueError, r"ramp must lie in \(0, 1\]"),
        ({"ramp": None}, TypeError, "ramp must be a number"),
        ({"shrink": 0}, ValueError, r"shrink must lie in \(0, 1\]; got 0"),
        ({"shrink": 0.5, "rewind": "weights"}, ValueError, "with rewind='weights' none do"),
        ({"stop_mask_distance": 1.0}, ValueError, r"stop_mask_distance must lie in \[0, 1\)"),
        ({"stop_mask_distance": 0.1, "round_epochs": 1}, ValueError, "round_epochs must be at least 2"),
        ({"max_layer_sparsity": 0.8}, ValueError, "max_layer_sparsity=0.8 is below target_sparsity=0.9"),
        ({"max_layer_sparsity": 95}, ValueError, "fraction, not percent"),
        ({"min_layer_survivors": -1}, ValueError, "min_layer_survivors must be at least 0"),
        ({"min_layer_share": 1}, ValueError, r"min_layer_share must lie in \[0, 1\)"),
        ({"min_layer_share": None}, TypeError, "min_layer_share must be a number"),
        ({"granularity": "4x1"}, ValueError, "granularity must be 'unstructured', 'channel', .*; got '4x1'"),
        ({"granularity": "1x1"}, ValueError, "granularity must be 'unstructured', 'channel', .*; got '1x1'"),
        ({"granularity": "0:4"}, ValueError, "granularity must be 'unstructured', 'channel', .*; got '0:4'"),
        ({"granularity": ("1x4",)}, ValueError, "granularity must be 'unstructured', 'channel', .*; got "),
        ({"granularity": "1:3", "target_sparsity": 0.667}, ValueError, "must be 0.6666666666666667; got 0.667"),
        ({"granularity": "2:4"}, ValueError, "exactly 2 of each 4 weights, so target_sparsity must be 0.5; got 0.9"),
        ({"rewind": "weihgts"}, ValueError, "Did you mean 'weights'"),
        ({"round_schedule": "compres"}, ValueError, "Did you mean 'compress'"),
        ({"scope": "layers"}, ValueError, "scope must be one of 'global', 'layer'"),
        ({"criterion": "magnitud"}, ValueError, "or a function.*Did you mean 'magnitude'"),
        ({"include": "head/*"}, TypeError, "tuple of patterns"),
        ({"exclude": (1,)}, TypeError, "tuple of patterns"),
        ({"include": {"head/*"}}, TypeError, "tuple of patterns"),
        ({"include": (pattern for pattern in ("head/*",))}, TypeError, "tuple of patterns"),
        ({"mixed_precision": "float16"}, ValueError, "mixed_precision must be None or one of 'auto', .*'mixed_fl"),
        ({"mixed_precision": True}, ValueError, "mixed_precision must be None or one of"),
        ({"seed": "a"}, TypeError, "seed must be a whole number"),
    ],
)
def test_bad_fields_are_refused(fields, error, message):
    with pytest.raises(error, match=message):
        config(**fields).validate()


@pytest.mark.parametrize(("granularity", "sparsity"), [("1x8", 0.9), ("1:3", 1 - 1 / 3), ("3:5", 0.4), ("8:16", 0.5)])
def test_structures_of_any_size(granularity, sparsity):
    config(granularity=granularity, target_sparsity=sparsity).validate()
    assert str(Structure.of(granularity)) == f"granularity={granularity!r}"


def test_json_keeps_every_field():
    original = config(
        rate=0.3, round_epochs=4, rewind="weights", stop_mask_distance=0.1, include=("a/*",), exclude=("b", "c"), seed=7
    )
    assert PruningConfig.from_json(original.to_json()) == original


def squares(weights, masks):
    return {path: weight**2 for path, weight in weights.items()}


def test_a_function_is_written_by_its_name():
    config(criterion=squares).validate()
    assert f'"criterion": "{__name__}.squares"' in config(criterion=squares).to_json()
    with pytest.raises(ValueError, match="criterion must be one of .*got 'test_config.squares'"):
        PruningConfig.from_json(config(criterion=squares).to_json()).validate()


def test_objects_are_written_without_where_they_lie():
    """For the same config is another object in another process."""

    class Sign:
        def __call__(self, weights, masks):
            return weights

    for make in (Sign, lambda: functools.partial(squares, Sign())):
        one, other = config(criterion=make()), config(criterion=make())
        assert one.to_json() == other.to_json()
    assert "squares" in config(criterion=functools.partial(squares)).to_json()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("{", ValueError, "not JSON"),
        ("[1]", TypeError, "must be a JSON object; got list"),
        ('{"version": 6, "target_sparsity": 0.9, "epochs": 3}', ValueError, "of version 6, .* versions 1 to 5"),
        ('{"version": "2", "target_sparsity": 0.9, "epochs": 3}', ValueError, "of version '2'"),
        ('{"version": 0}', ValueError, "of version 0"),
        ('{"target_sparsity": 0.9}', TypeError, "epochs must be given"),
        ('{"target_sparsity": 0.9, "epoch": 3}', TypeError, "no field 'epoch'. Did you mean 'epochs'"),
    ],
)
def test_bad_json_is_refused(text, error, message):
    with pytest.raises(error, match=message):
        PruningConfig.from_json(text)


# What version 1 wrote, at first and at last, with all that has a default at that.
OLDEST = {
    "target_sparsity": 0.9,
    "rate": 0.2,
    "epochs": 31,
    "round_epochs": None,
    "rewind": "learning_rate",
    "rewind_epoch": 0,
    "round_schedule": "compress",
    "scope": "global",
    "criterion": "magnitude",
    "include": [],
    "exclude": [],
    "mixed_precision": None,
    "seed": None,
}
LAST_OF_VERSION_1 = {
    **OLDEST,
    "method": "iterative",
    "ramp": 0.5,
    "final_rewind": None,
    "stop_mask_distance": None,
    "granularity": "unstructured",
    "max_layer_sparsity": None,
    "min_layer_survivors": 0,
    "compact_rounds": False,
}


# What came after these versions, as it was done before there was a choice.
SINCE = {
    "start": "untrained",
    "total_epochs": None,
    "shrink": 1.0,
    "budget": "weights",
    "channel_multiple": 1,
    "criterion_batches": None,
    "repair": False,
    "regularizer": None,
    "distillation": None,
    "projection": None,
    "softness": 0.5,
    "fade_epochs": 0.0,
    "regrow": 0.0,
}

# What changed with a version.
OF_VERSION_2 = {"round_schedule": "compress", "shrink": 1.0}
OF_VERSION_3 = {"round_schedule": "head", "shrink": 0.7}
# What was False means the same as None does now.
NOW = {"version": 5, "compact_rounds": None}


@pytest.mark.parametrize("fields", [OLDEST, LAST_OF_VERSION_1, {**LAST_OF_VERSION_1, "data_on_device": True}])
def test_fields_of_version_1_mean_what_they_meant(fields):
    """A default that changes now must leave this as it is: raise VERSION, and let `upgrade` write the former one."""
    assert upgrade(fields) == {
        **LAST_OF_VERSION_1,
        **SINCE,
        **NOW,
        "round_epochs": 7,
        "min_layer_share": 0.0,
    }
    assert upgrade({**fields, "round_epochs": 3, "epochs": 30})["round_epochs"] == 3
    read = PruningConfig.from_json(json.dumps(fields))
    assert read == config(epochs=31, round_epochs=7, min_layer_share=0.0, **OF_VERSION_2)
    assert PruningConfig.from_json(read.to_json()) == read


def test_fields_of_version_2_mean_what_they_meant():
    """As above."""
    fields = {**LAST_OF_VERSION_1, **SINCE, "version": 2, "min_layer_share": 0.05}
    for written in (fields, {"version": 2, "target_sparsity": 0.9, "epochs": 31}):
        assert upgrade(written) == {**fields, **NOW}
        assert PruningConfig.from_json(json.dumps(written)) == config(epochs=31, **OF_VERSION_2)


def test_fields_of_version_3_mean_what_they_meant():
    """As above."""
    fields = {**LAST_OF_VERSION_1, **SINCE, **OF_VERSION_3, "version": 3, "min_layer_share": 0.05}
    for written in (fields, {"version": 3, "target_sparsity": 0.9, "epochs": 31}, {**fields, "version": 4}):
        assert upgrade(written) == {**fields, **NOW}
    assert json.loads(config(epochs=31).to_json()) == {**fields, **NOW}
    # What a method did not use, it did not heed; tfmot was a method.
    unused = {"rate": 0.36, "round_epochs": 3, "shrink": 1.0, "start": "trained"}
    read = PruningConfig.from_json(json.dumps({**fields, **unused, "method": "gradual", "ramp": 0.4}))
    assert read == config(epochs=31, method="gradual", ramp=0.4)
    read = PruningConfig.from_json(json.dumps({**fields, **unused, "method": "tfmot"}))
    assert read == config(epochs=31, method="tfmot")


def test_another_method_gets_the_defaults_of_what_it_does_not_use():
    blocks = config(rate=0.3, round_epochs=2, granularity="1x4", seed=3)
    gradual = blocks.replace(method="gradual", ramp=0.4)
    assert gradual == config(method="gradual", ramp=0.4, granularity="1x4", seed=3)
    assert gradual.replace(method="dense") == config(method="dense", seed=3)
    assert blocks.replace(method="iterative", epochs=4) == dataclasses.replace(blocks, epochs=4)
    with pytest.raises(ValueError, match="no use for rate=0.4"):
        blocks.replace(method="gradual", rate=0.4).validate()


def test_a_run_keeps_the_defaults_that_it_began_with():
    fields = {**LAST_OF_VERSION_1, "epochs": 31}
    today = config(epochs=31)
    assert kept_defaults(today, fields) == {"round_epochs": 7, "min_layer_share": 0.0, **OF_VERSION_2}
    changed = {"round_epochs": 6, "min_layer_share": 0.2, "shrink": 0.5}
    assert kept_defaults(today.replace(**changed), fields) == {"round_schedule": "compress"}
    assert kept_defaults(today, {**fields, "round_epochs": 6}) == {"min_layer_share": 0.0, **OF_VERSION_2}
    assert kept_defaults(today, json.loads(today.to_json())) == {}
    assert kept_defaults(today, {**json.loads(today.to_json()), "min_layer_share": 0.0}) == {}


def test_a_schedule_of_former_versions_can_be_read_and_not_begun():
    """There was a third, "tail", in which a round took the last part of the schedule."""
    written = {**LAST_OF_VERSION_1, "round_schedule": "tail"}
    former = PruningConfig.from_json(json.dumps(written))
    assert former.round_schedule == upgrade(written)["round_schedule"] == "tail"
    with pytest.raises(ValueError, match="round_schedule must be one of 'head', 'compress'; got 'tail'"):
        former.validate()


def test_replace_names_the_nearest_field():
    assert config().replace(epochs=20) == config(epochs=20)
    with pytest.raises(TypeError, match="no field 'round_epoch'. Did you mean 'round_epochs'"):
        config().replace(round_epoch=2)


@pytest.mark.parametrize("field", dataclasses.fields(PruningConfig), ids=lambda field: field.name)
def test_flags_can_override_every_field(field, monkeypatch):
    """ml_collections reads the fields' types; it knows few, and a postponed annotation would be a string."""
    texts = {float: "0.5", int: "3", bool: "true", str: "text", tuple: "text", object: "text"}
    (kind,) = {typing.get_origin(kind) or kind for kind in typing.get_args(field.type) or (field.type,)} & texts.keys()
    values = flags.FlagValues()
    monkeypatch.setattr(sys, "argv", ["program", f"--config.{field.name}={texts[kind]}"])
    config_flags.DEFINE_config_dataclass("config", config(), flag_values=values)
    values(sys.argv)
    assert getattr(values.config, field.name) in (0.5, 3, True, "text", ("text",))

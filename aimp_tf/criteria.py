"""What weights and channels can be ranked by: `PruningConfig.criterion` takes these, or the name of one."""

from aimp_tf.selection.activation_criteria import (
    ActivationDensity,
    Discriminant,
    MutualInformation,
    OutputInformation,
    Reconstruction,
    Utility,
    Votes,
)
from aimp_tf.selection.channel_layout import Channels
from aimp_tf.selection.criteria import Fisher, Gradient, Lamp, Magnitude, Random, Scale, Taylor
from aimp_tf.selection.criterion import Criterion
from aimp_tf.selection.statistics import Statistics

__all__ = [
    "ActivationDensity",
    "Channels",
    "Criterion",
    "Discriminant",
    "Fisher",
    "Gradient",
    "Lamp",
    "Magnitude",
    "MutualInformation",
    "OutputInformation",
    "Random",
    "Reconstruction",
    "Scale",
    "Statistics",
    "Taylor",
    "Utility",
    "Votes",
]

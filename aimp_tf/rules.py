"""What `register_rule` takes: what is known of a layer, how channels pass through it and how it is made with fewer."""

from aimp_tf.graph.channels import Axis, ChannelClasses, Flow
from aimp_tf.graph.linear import Depthwise, Grouped, Linear, Separable
from aimp_tf.graph.model_graph import Call, Tensor
from aimp_tf.graph.rules import Assumptions, Kept, PassThrough, Reading, Rule

__all__ = [
    "Assumptions",
    "Axis",
    "Call",
    "ChannelClasses",
    "Depthwise",
    "Flow",
    "Grouped",
    "Kept",
    "Linear",
    "PassThrough",
    "Reading",
    "Rule",
    "Separable",
    "Tensor",
]

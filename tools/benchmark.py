"""Measures what the package costs, all sides in turn, and prints ratios.

    python tools/benchmark.py checkpoints
    python tools/benchmark.py checkpoints --repetitions=5 --output=runs/checkpoints.json
    python tools/benchmark.py inference --model=runs/wide_mlp/export/model.keras --output=runs/inference.json

Commands:

    checkpoints    what saving to a workdir costs, on a ResNet-20; about 5 minutes on two cores
    inference      size, memory and latency of a pruned model in all its exported forms, beside the dense one; needs
                   --model; about 3 minutes on two cores
    layers         from which sparsity on a Dense layer gets faster, by batch size and structure of the zeros; about 3
                   minutes on two cores
    ranking        ranking 25.5 million weights, beside a partition and, where it is installed (the extra benchmark),
                   PyTorch's global pruning, and how its time grows up to 250 million; about a minute, 3 GB of memory
    step           training steps of masked models beside plain ones and, in tf_keras, tfmot's; about 3 minutes
    rounds         what lies between two rounds, on a ResNet-20; about 3 minutes on two cores
    end_to_end     a whole run on Fashion-MNIST beside a plain `fit` of as many epochs; about 10 minutes on two cores
    memory         the most memory that `prune` takes on an MLP of 47 million weights with Adam, beside a plain `fit` of
                   as many epochs, each in a process of its own; about 2 minutes a repetition on two cores, 3 GB
    compact_rounds training steps of what is alive of a pruned network beside those of the whole one, which is what
                   `compact_rounds` saves; on Fashion-MNIST; about 12 minutes on two cores
    peers          accuracy for the same epochs, and seconds an epoch beside a plain `fit`, of AIMP, gradual pruning,
                   tfmot and, where it is installed (the extra benchmark), PQuantML; a ResNet-8 on a twelfth of
                   Fashion-MNIST; a repetition is a seed
    channels       calls of networks with a half and a quarter of their multiply-adds beside the dense ones, and a
                   whole run whose rounds shrink beside one whose rounds do not; about an hour a repetition
    channel_peers  accuracy for the same epochs of AIMP by whole channels, of the small network trained from scratch
                   and, where it is installed (the extra benchmark), of Torch-Pruning; of a ResNet-20 and a plain CNN;
                   a repetition is a seed, and takes an hour or more of a core
    latency        whether networks that were asked to be twice as fast are, in both formats; about 15 minutes
    criteria       what a pass over the data for a criterion costs beside training on it, and what is left of a trained
                   ResNet-20 that loses half of its multiply-adds at once by each, with and without repair; a
                   repetition is a seed, and takes some ten minutes
    coverage       how much of what can go, as gradients show, `compact` takes out of the networks of
                   `keras.applications` in both generations and, where it is installed (the extra benchmark), tiny ones
                   of KerasHub; --networks chooses some, --compact=all compacts all; some two hours on two cores
    coded          how fast coded files are written and read, and how far they are from their entropy; about 2 minutes
    gpu            masked steps beside dense ones, runs in mixed precision beside float32, and with the data in the
                   memory of the GPU beside the host's, on ResNet-20 and ResNet-50; without a GPU it says so and
                   measures nothing

Where sides must compute the same, no ratio is printed unless they did. The exit code is 0 when it is done, 1 when it
failed, 2 when a setting was wrong and nothing was written, and 130 after Ctrl-C.
"""

import importlib
import json
import pathlib

from absl import flags

from aimp_tf.files import check_writable, write_atomically
from benchmarks import COMMANDS, options_of
from experiments import command_line

_REPETITIONS = flags.DEFINE_integer("repetitions", 3, "How often each side is timed.", lower_bound=1)
_OPTIONS = (
    command_line.define_path("model", "The .keras file of a pruned model. For `inference`, which needs it."),
    command_line.define_path(
        "inputs", "A .npy file of examples. For `inference`; default: numbers that are made up, in [0, 1)."
    ),
    command_line.define_data_dir(
        ". For `end_to_end`, `compact_rounds`, `peers`, `channels`, `channel_peers` and `criteria`"
    ),
    flags.DEFINE_string(
        "networks",
        None,
        "Which networks, as patterns with commas between them, such as keras/MobileNet*,tf_keras/RegNet*. For "
        "`coverage`; default: all.",
    ),
    flags.DEFINE_enum(
        "compact",
        None,
        ["all"],
        "Whether all networks are compacted, and their outputs compared. For `coverage`; default: the first of each "
        "family is, and the graphs of the others are read.",
    ),
)
_OUTPUT = command_line.define_path("output", "JSON file to write the figures to.")


def main(command: str) -> None:
    command_line.quieten()
    with command_line.refusing():
        options = options_of(command, {flag.name: flag.value for flag in _OPTIONS})
        output = None if _OUTPUT.value is None else pathlib.Path(_OUTPUT.value)
        if output is not None:
            check_writable(output.parent, "the folder of --output")
    figures = importlib.import_module(f"benchmarks.{command}").run(_REPETITIONS.value, **options)
    print(figures.pop("table"))
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, json.dumps(figures, indent=2))


if __name__ == "__main__":
    command_line.run(main, commands=tuple(COMMANDS))

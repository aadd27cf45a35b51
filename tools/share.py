r"""Codes what finished runs have pruned, with fewer and fewer values, and tells size against accuracy.

    python tools/share.py --config=configs/digits_mlp.py --workdir=runs/digits_mlp --output=runs/digits_mlp_coded
    python tools/share.py --config=configs/fashion_mnist_lenet_300_100.py --config.pruning.target_sparsity=0.98 \
        --data_dir=runs/data --workdir=runs/lenet_0,runs/lenet_1,runs/lenet_2 --output=runs/lenet_coded

The runs are of tools/prune.py, by the same config but for their seeds. Each is compacted, its weights share values,
which are fine-tuned, and everything else is rounded to float16. All files are read back to be tested; they lie in the
output with steps.json and, where matplotlib is installed, steps.png. It needs the extra coded.

The exit code is 0 when all is written, 1 when that failed, 2 when a setting was wrong and nothing was written, and 130
after Ctrl-C.
"""

import pathlib

from absl import flags

from aimp_tf.files import check_writable
from experiments import command_line
from experiments.experiment import Experiment

_CONFIG = command_line.define_config(Experiment, "That of the runs in --workdir. Required.")
_WORKDIR = flags.DEFINE_multi_string(
    "workdir", None, "Folder of a finished run of tools/prune.py, or several with commas between them. Required."
)
_DATA_DIR = command_line.define_data_dir()
_LEVELS = flags.DEFINE_list(
    "levels", ["4", "8", "16", "32"], "How many values other than zero, 2 to 256: each is tried."
)
_PER = flags.DEFINE_multi_enum(
    "per", ["layer", "model"], ["layer", "model"], "What has values of its own: each is tried."
)
_EPOCHS = flags.DEFINE_integer("epochs", 2, "How many epochs values are fine-tuned, by Adam.", lower_bound=1)
_RATE = flags.DEFINE_float("learning_rate", 1e-3, "Of the fine-tuning.", lower_bound=0.0)
_OUTPUT = command_line.define_path("output", "Folder to write to. Required.")


def main() -> None:
    command_line.quieten()
    with command_line.refusing():
        _CONFIG.value.validate()
        check_writable(_OUTPUT.value, "the folder of --output")
        with command_line.silent_stderr():  # Only now, for TensorFlow takes seconds to import.
            from experiments import chain

        levels = chain.levels_of(_LEVELS.value)
        workdirs = command_line.split(_WORKDIR.value)
        chains = chain.load(_CONFIG.value, workdirs, _DATA_DIR.value)
    print(chain.run(chains, pathlib.Path(_OUTPUT.value), levels, _PER.value, _EPOCHS.value, _RATE.value))


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir", "output"])

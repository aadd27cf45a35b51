"""Prepares Fashion-MNIST for tensorflow-datasets from its gzipped IDX files, where there is no network.

Debian's package dataset-fashion-mnist holds the files:

    apt-get install dataset-fashion-mnist
    python tools/prepare_fashion_mnist.py --idx_dir=/usr/share/datasets/fashion-mnist --data_dir=runs/data
    python tools/prune.py --config=configs/fashion_mnist_lenet_300_100.py --data_dir=runs/data --workdir=runs/lenet

What is prepared already stays as it is. The exit code is 0 when the data is prepared, 1 when that failed, 2 when a
setting was wrong and nothing was written, and 130 after Ctrl-C.
"""

from aimp_tf.files import check_writable
from experiments import command_line
from experiments.datasets import prepare_fashion_mnist

_IDX_DIR = command_line.define_path(
    "idx_dir", "Folder of the four .gz files.", default="/usr/share/datasets/fashion-mnist"
)
_DATA_DIR = command_line.define_path(
    "data_dir", "Folder for tensorflow-datasets; pass the same to the other tools. Required."
)


def main() -> None:
    with command_line.refusing():
        check_writable(_DATA_DIR.value, "data_dir")
    prepare_fashion_mnist(_IDX_DIR.value, _DATA_DIR.value)
    print(f"Fashion-MNIST is prepared in {_DATA_DIR.value}.")


if __name__ == "__main__":
    command_line.run(main, required=["data_dir"])

"""Prepares Fashion-MNIST for tensorflow-datasets from its gzipped IDX files, where there is no network.

Debian's package dataset-fashion-mnist holds the files:

    apt-get install dataset-fashion-mnist
    python tools/prepare_fashion_mnist.py --idx_dir=/usr/share/datasets/fashion-mnist --data_dir=runs/data
    python tools/prune.py --config=configs/fashion_mnist_lenet_300_100.py --data_dir=runs/data --workdir=runs/lenet
"""

from absl import app, flags

_IDX_DIR = flags.DEFINE_string("idx_dir", "/usr/share/datasets/fashion-mnist", "Folder of the four .gz files.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Folder for tensorflow-datasets; pass the same to the other tools.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"Unexpected arguments: {' '.join(argv[1:])}")
    from aimp_tf.experiments.datasets import prepare_fashion_mnist

    prepare_fashion_mnist(_IDX_DIR.value, _DATA_DIR.value)
    print(f"Fashion-MNIST is prepared in {_DATA_DIR.value}.")


if __name__ == "__main__":
    flags.mark_flag_as_required("data_dir")
    app.run(main)

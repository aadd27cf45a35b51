"""Named data sets, as arrays."""

from __future__ import annotations

import dataclasses
import gzip
import os
import pathlib
import shutil
import tempfile

import numpy as np

_IDX_FILES = {
    "train-images-idx3-ubyte.gz": (2051, 60_000),
    "train-labels-idx1-ubyte.gz": (2049, 60_000),
    "t10k-images-idx3-ubyte.gz": (2051, 10_000),
    "t10k-labels-idx1-ubyte.gz": (2049, 10_000),
}


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """What is known of a data set before it is loaded.

    Attributes:
        image_shape: Height, width and channels.
        classes: Number of classes.
        train_examples: Number of training images.
    """

    image_shape: tuple[int, int, int]
    classes: int
    train_examples: int


IMAGE_SETS = {
    "digits": ImageSet((8, 8, 1), classes=10, train_examples=1437),
    "fashion_mnist": ImageSet((28, 28, 1), classes=10, train_examples=60_000),
}


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Labelled grey images, split for training and testing.

    Attributes:
        train_images: float32, (examples, height, width, 1), in [0, 1].
        train_labels: int64, (examples,), in [0, classes).
        test_images: As `train_images`.
        test_labels: As `train_labels`.
        classes: Number of classes.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: int


def load(name: str, data_dir: str | os.PathLike[str] | None = None) -> ImageData:
    """Loads "digits" (scikit-learn's 8 x 8 images, a fifth of each class for testing) or "fashion_mnist".

    Args:
        name: Name of the data set.
        data_dir: Where tensorflow-datasets keeps its data. None is its own default.

    Raises:
        ValueError: The name is unknown.
        RuntimeError: Fashion-MNIST is not in `data_dir` and cannot be downloaded.
    """
    if name not in IMAGE_SETS:
        raise ValueError(f"Unknown data set {name!r}; the data sets are {' and '.join(IMAGE_SETS)}.")
    return _digits() if name == "digits" else _fashion_mnist(data_dir)


def prepare_fashion_mnist(idx_dir: str | os.PathLike[str], data_dir: str | os.PathLike[str]) -> None:
    """Prepares Fashion-MNIST for tensorflow-datasets from the four gzipped IDX files, without a network.

    Args:
        idx_dir: Folder with train-images-idx3-ubyte.gz and its three companions.
        data_dir: Where tensorflow-datasets is to keep the data.

    Raises:
        ValueError: A file is missing or is not the IDX file of Fashion-MNIST that its name says.
    """
    _check_idx_files(idx_dir)
    import tensorflow_datasets as tfds
    from etils import epath
    from tensorflow_datasets.core.download import resource

    builder = tfds.builder("fashion_mnist", data_dir=os.fspath(data_dir))
    with tempfile.TemporaryDirectory() as folder:
        # The downloader takes a file for downloaded when it lies under the name made of its address and checksum,
        # with a note of where it came from beside it. Repacked files have other checksums, so the known ones are used.
        for url, info in builder.url_infos.items():
            name = url.rsplit("/", 1)[-1]
            cached = pathlib.Path(folder) / resource.get_dl_fname(url, info.checksum)
            shutil.copyfile(pathlib.Path(idx_dir) / name, cached)
            resource.write_info_file(
                url=url, path=epath.Path(cached), dataset_name=builder.name, original_fname=name, url_info=info
            )
        builder.download_and_prepare(download_dir=folder)


def _check_idx_files(folder: str | os.PathLike[str]) -> None:
    for name, header in _IDX_FILES.items():
        path = pathlib.Path(folder) / name
        try:
            with gzip.open(path) as file:
                found = tuple(np.frombuffer(file.read(8), ">u4").tolist())
        except (OSError, EOFError) as error:
            raise ValueError(
                f"{path} cannot be read as a gzipped IDX file: {error}. Name the folder of the four files, such as "
                "that of Debian's package dataset-fashion-mnist."
            ) from error
        if found != header:
            raise ValueError(f"{path} is not the IDX file that its name says: it starts {found}, not {header}.")


def _digits() -> ImageData:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = (digits.images[..., np.newaxis] / 16).astype(np.float32)
    labels = digits.target.astype(np.int64)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    return ImageData(train_images, train_labels, test_images, test_labels, classes=10)


def _fashion_mnist(data_dir: str | os.PathLike[str] | None) -> ImageData:
    import tensorflow_datasets as tfds

    try:
        data = tfds.load("fashion_mnist", batch_size=-1, data_dir=data_dir and os.fspath(data_dir))
    except Exception as error:
        raise RuntimeError(
            f"Fashion-MNIST is not in {data_dir or 'the default folder of tensorflow-datasets'} and could not be "
            f"downloaded ({type(error).__name__}). Without a network, prepare it from its IDX files with "
            "tools/prepare_fashion_mnist.py and name the folder with --data_dir."
        ) from error
    train, test = tfds.as_numpy(data["train"]), tfds.as_numpy(data["test"])
    return ImageData(
        (train["image"] / 255).astype(np.float32),
        train["label"],
        (test["image"] / 255).astype(np.float32),
        test["label"],
        classes=10,
    )

"""Trains a ResNet of `experiments.models` in PyTorch, by the same recipe, and prunes it by Torch-Pruning.

In a process of its own: beside TensorFlow 2.21, the first step of an optimizer of PyTorch 2.14 ends in a segmentation
fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import torch_pruning
from torch import nn

_BLOCKS = {"resnet_8": (1, 16), "resnet_20": (3, 16), "wide_resnet_20": (3, 64)}
_STEPS = 400


class _Block(nn.Module):
    def __init__(self, inputs: int, filters: int, strides: int) -> None:
        super().__init__()
        self.first = _convolution(inputs, filters, 3, strides)
        self.second = _convolution(filters, filters, 3, 1)
        self.shortcut = nn.Sequential() if strides == 1 else _convolution(inputs, filters, 1, strides)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


class _ResNet(nn.Module):
    def __init__(self, blocks: int, width: int, classes: int) -> None:
        super().__init__()
        self.stem = _convolution(1, width, 3, 1)
        stages, inputs = [], width
        for stage in range(3):
            for block in range(blocks):
                filters = width * 2**stage
                stages.append(_Block(inputs, filters, 2 if stage and not block else 1))
                inputs = filters
        self.blocks = nn.Sequential(*stages)
        self.logits = nn.Linear(inputs, classes)
        nn.init.xavier_uniform_(self.logits.weight)
        nn.init.zeros_(self.logits.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.logits(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


def _convolution(inputs: int, filters: int, size: int, strides: int) -> nn.Sequential:
    """With normalisation, and the defaults of Keras."""
    convolution = nn.Conv2d(inputs, filters, size, strides, padding=size // 2, bias=False)
    nn.init.trunc_normal_(convolution.weight, std=(2 / (inputs * size * size)) ** 0.5 / 0.87962566, a=-10, b=10)
    return nn.Sequential(convolution, nn.BatchNorm2d(filters, eps=1e-3, momentum=0.01))


def train(
    data_file: str, architecture: str, seed: int, rounds: Sequence[tuple[int, float]], **recipe: Any
) -> tuple[float, float]:
    """The accuracy on the test images, and the fraction of the multiply-adds that is left.

    Args:
        data_file: An NPZ file of the arrays of `experiments.datasets.ImageData`.
        architecture: Of `experiments.models`.
        seed: Of the first weights and the order of the examples.
        rounds: The epochs and the fraction of the multiply-adds that is left of each training. Rounds keep the first
            learning rate; the last training has all of its schedule, tenfold drops after half and three quarters.
        recipe: "batch_size", "learning_rate" and "momentum".
    """
    data = np.load(data_file)
    torch.manual_seed(seed)
    images, labels = _tensors(data["train_images"], data["train_labels"])
    model = _ResNet(*_BLOCKS[architecture], int(data["classes"]))
    example = images[:1]
    pruner = torch_pruning.pruner.BasePruner(
        model,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        global_pruning=True,
        pruning_ratio=1.0,
        max_pruning_ratio=0.9,
        iterative_steps=_STEPS,
        ignored_layers=[model.logits],
    )
    dense = left = _multiply_adds(model, example)
    for index, (epochs, share) in enumerate(rounds):
        while left > share * dense:
            if pruner.current_step == _STEPS:
                raise SystemExit(f"Torch-Pruning leaves {left / dense:.3f} of the multiply-adds at least, not {share}.")
            pruner.step()
            left = _multiply_adds(model, example)
        _train(model, images, labels, epochs, recipe, drops=index == len(rounds) - 1)
    model.eval()
    tests, classes = _tensors(data["test_images"], data["test_labels"])
    with torch.no_grad():
        right = sum(
            int((model(part).argmax(1) == truth).sum())
            for part, truth in zip(tests.split(1000), classes.split(1000), strict=True)
        )
    return right / len(classes), left / dense


def _train(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, recipe: Mapping[str, Any], *, drops: bool
) -> None:
    model.train()
    optimizer = torch.optim.SGD(model.parameters(), recipe["learning_rate"], momentum=recipe["momentum"])
    steps = epochs * -(-len(labels) // recipe["batch_size"])
    milestones = [steps // 2, steps * 3 // 4] if drops else []
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels)).split(recipe["batch_size"]):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()


def _multiply_adds(model: nn.Module, example: torch.Tensor) -> float:
    was_training = model.training
    count = torch_pruning.utils.count_ops_and_params(model.eval(), example)[0]
    model.train(was_training)
    return float(count)


def _tensors(images: np.ndarray, labels: np.ndarray) -> tuple[torch.Tensor, Any]:
    """Channels first, as PyTorch has them."""
    return torch.from_numpy(np.moveaxis(images, -1, 1).copy()), torch.from_numpy(labels.astype(np.int64))

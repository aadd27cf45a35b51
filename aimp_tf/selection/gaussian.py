"""Covariances of what a sample of the data gives, as of normal variables. NumPy only."""

from __future__ import annotations

import numpy as np

_RIDGE = 1e-2
"""What is added to the diagonal of covariances, where variances are 1."""


def standardized(values: np.ndarray) -> np.ndarray:
    """Values (examples, variables) less their mean over examples, with a mean square of 1 in each column that is not
    constant."""
    centred = values.astype(np.float64) - values.mean(axis=0, dtype=np.float64)
    deviations = np.sqrt((centred**2).mean(axis=0))
    return centred / np.where(deviations > 1e-12 * np.abs(values).max(axis=0, initial=1e-30), deviations, 1.0)


def log_determinant(centred: np.ndarray) -> float:
    """Of the `covariance` of standardized values, beside what it is where all of them are constant; by the examples
    where these are fewer."""
    examples, count = centred.shape
    moments = (centred.T @ centred if count < examples else centred @ centred.T) / (examples * _RIDGE)
    return float(np.linalg.slogdet(np.eye(len(moments)) + moments)[1])


def covariance(centred: np.ndarray) -> np.ndarray:
    """The covariance (variables, variables) of standardized values, with a little added so that it has an inverse."""
    matrix = centred.T @ centred / len(centred)
    return matrix + _RIDGE * np.eye(len(matrix))

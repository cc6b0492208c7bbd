"""Gradients by central finite differences, which know nothing of the chain rule: what every backward pass is compared with."""

from collections.abc import Callable

import numpy as np

STEP = 1e-5


def finite_differences(loss: Callable[[], float], array: np.ndarray) -> np.ndarray:
    """d loss / d array, element by element; `array` (float64) is changed in place and restored."""
    gradient = np.empty_like(array)
    for i in np.ndindex(array.shape):
        kept = array[i]
        array[i] = kept + STEP
        above = loss()
        array[i] = kept - STEP
        below = loss()
        array[i] = kept
        gradient[i] = (above - below) / (2 * STEP)
    return gradient


def relative_error(found: np.ndarray, expected: np.ndarray, floor: float = 1e-30) -> float:
    """Largest difference, in units of the largest expected value or of `floor`. Neither array may hold anything but numbers."""
    assert found.shape == expected.shape, f"{found.shape} is not {expected.shape}"
    assert np.isfinite(found).all() and np.isfinite(expected).all()
    scale = max(float(np.abs(expected).max(initial=0)), floor)
    return float(np.abs(np.asarray(found, np.float64) - np.asarray(expected, np.float64)).max(initial=0)) / scale

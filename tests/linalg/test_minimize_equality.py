"""Constrained minima of known problems, against their published values and SciPy."""

import math
import pickle
from typing import NamedTuple

import numpy as np
import pytest
import scipy.optimize
import torch

import fastlr.linalg as la
from fastlr.linalg import constrained
from strategies import hermitian


class Problem(NamedTuple):
    fun: object
    constraint: object
    x0: tuple
    minimum: float
    x: tuple | None = None


def stack(function):
    """A vector of the entries that a function returns."""
    return lambda x: torch.stack(tuple(function(*x)))


def scalar(function):
    return lambda x: function(*x)


ROOT2 = math.sqrt(2)

# Hock, Schittkowski, "Test examples for nonlinear programming codes", 1981 (HS), and Boggs, Tolle,
# SINUM 26 (1989) (BT), in the formulas of the problems; Maratos's circle.
PROBLEMS = {
    "HS6": Problem(
        scalar(lambda a, b: (1 - a) ** 2),
        stack(lambda a, b: [10 * (b - a**2)]),
        (-1.2, 1),
        0,
        (1, 1),
    ),
    "HS7": Problem(
        scalar(lambda a, b: torch.log(1 + a**2) - b),
        stack(lambda a, b: [(1 + a**2) ** 2 + b**2 - 4]),
        (2, 2),
        -math.sqrt(3),
        (0, math.sqrt(3)),
    ),
    "HS8": Problem(
        scalar(lambda a, b: -torch.ones_like(a)),
        stack(lambda a, b: [a**2 + b**2 - 25, a * b - 9]),
        (2, 1),
        -1,
    ),
    "HS9": Problem(
        scalar(lambda a, b: torch.sin(math.pi * a / 12) * torch.cos(math.pi * b / 16)),
        stack(lambda a, b: [4 * a - 3 * b]),
        (0, 0),
        -0.5,
    ),
    "HS26": Problem(
        scalar(lambda a, b, c: (a - b) ** 2 + (b - c) ** 4),
        stack(lambda a, b, c: [(1 + b**2) * a + c**4 - 3]),
        (-2.6, 2, 2),
        0,
    ),
    "HS27": Problem(
        scalar(lambda a, b, c: 0.01 * (a - 1) ** 2 + (b - a**2) ** 2),
        stack(lambda a, b, c: [a + c**2 + 1]),
        (2, 2, 2),
        0.04,
        (-1, 1, 0),
    ),
    "HS28": Problem(
        scalar(lambda a, b, c: (a + b) ** 2 + (b + c) ** 2),
        stack(lambda a, b, c: [a + 2 * b + 3 * c - 1]),
        (-4, 1, 1),
        0,
        (0.5, -0.5, 0.5),
    ),
    "HS39": Problem(
        scalar(lambda a, b, c, d: -a),
        stack(lambda a, b, c, d: [b - a**3 - c**2, a**2 - b - d**2]),
        (2, 2, 2, 2),
        -1,
        (1, 1, 0, 0),
    ),
    "HS40": Problem(
        scalar(lambda a, b, c, d: -a * b * c * d),
        stack(lambda a, b, c, d: [a**3 + b**2 - 1, a**2 * d - c, d**2 - b]),
        (0.8, 0.8, 0.8, 0.8),
        -0.25,
    ),
    "HS42": Problem(
        scalar(lambda a, b, c, d: (a - 1) ** 2 + (b - 2) ** 2 + (c - 3) ** 2 + (d - 4) ** 2),
        stack(lambda a, b, c, d: [a - 2, c**2 + d**2 - 2]),
        (1, 1, 1, 1),
        28 - 10 * ROOT2,
        (2, 2, 0.6 * ROOT2, 0.8 * ROOT2),
    ),
    "HS46": Problem(
        scalar(
            lambda a, b, c, d, e: (a - b) ** 2 + (c - 1) ** 2 + (d - 1) ** 4 + (e - 1) ** 6
        ),
        stack(
            lambda a, b, c, d, e: [a**2 * d + torch.sin(d - e) - 1, b + c**4 * d**2 - 2]
        ),
        (ROOT2 / 2, 1.75, 0.5, 2, 2),
        0,
    ),
    "HS48": Problem(
        scalar(lambda a, b, c, d, e: (a - 1) ** 2 + (b - c) ** 2 + (d - e) ** 2),
        stack(lambda a, b, c, d, e: [a + b + c + d + e - 5, c - 2 * (d + e) + 3]),
        (3, 5, -3, 2, -2),
        0,
        (1, 1, 1, 1, 1),
    ),
    "HS49": Problem(
        scalar(
            lambda a, b, c, d, e: (a - b) ** 2 + (c - 1) ** 2 + (d - 1) ** 4 + (e - 1) ** 6
        ),
        stack(lambda a, b, c, d, e: [a + b + c + 4 * d - 7, c + 5 * e - 6]),
        (10, 7, 2, -3, 0.8),
        0,
    ),
    "HS50": Problem(
        scalar(
            lambda a, b, c, d, e: (a - b) ** 2 + (b - c) ** 2 + (c - d) ** 4 + (d - e) ** 2
        ),
        stack(
            lambda a, b, c, d, e: [
                a + 2 * b + 3 * c - 6,
                b + 2 * c + 3 * d - 6,
                c + 2 * d + 3 * e - 6,
            ]
        ),
        (35, -31, 11, 5, -5),
        0,
        (1, 1, 1, 1, 1),
    ),
    "HS51": Problem(
        scalar(lambda a, b, c, d, e: (a - b) ** 2 + (b + c - 2) ** 2 + (d - 1) ** 2 + (e - 1) ** 2),
        stack(lambda a, b, c, d, e: [a + 3 * b - 4, c + d - 2 * e, b - e]),
        (2.5, 0.5, 2, -1, 0.5),
        0,
        (1, 1, 1, 1, 1),
    ),
    "HS52": Problem(
        scalar(
            lambda a, b, c, d, e: (4 * a - b) ** 2 + (b + c - 2) ** 2 + (d - 1) ** 2 + (e - 1) ** 2
        ),
        stack(lambda a, b, c, d, e: [a + 3 * b, c + d - 2 * e, b - e]),
        (2, 2, 2, 2, 2),
        1859 / 349,
        tuple(np.array([-33, 11, 180, -158, 11]) / 349),
    ),
    "HS77": Problem(
        scalar(
            lambda a, b, c, d, e: (
                (a - 1) ** 2 + (a - b) ** 2 + (c - 1) ** 2 + (d - 1) ** 4 + (e - 1) ** 6
            )
        ),
        stack(
            lambda a, b, c, d, e: [
                a**2 * d + torch.sin(d - e) - 2 * ROOT2,
                b + c**4 * d**2 - 8 - ROOT2,
            ]
        ),
        (2, 2, 2, 2, 2),
        0.24150513,
    ),
    "HS78": Problem(
        scalar(lambda a, b, c, d, e: a * b * c * d * e),
        stack(
            lambda a, b, c, d, e: [
                a**2 + b**2 + c**2 + d**2 + e**2 - 10,
                b * c - 5 * d * e,
                a**3 + b**3 + 1,
            ]
        ),
        (-2, 1.5, 2, -1, -1),
        -2.91970041,
    ),
    "HS79": Problem(
        scalar(
            lambda a, b, c, d, e: (
                (a - 1) ** 2 + (a - b) ** 2 + (b - c) ** 2 + (c - d) ** 4 + (d - e) ** 4
            )
        ),
        stack(
            lambda a, b, c, d, e: [
                a + b**2 + c**3 - 2 - 3 * ROOT2,
                b - c**2 + d + 2 - 2 * ROOT2,
                a * e - 2,
            ]
        ),
        (2, 2, 2, 2, 2),
        0.0787768209,
    ),
    "BT1": Problem(
        scalar(lambda a, b: 100 * a**2 + 100 * b**2 - a - 100),
        stack(lambda a, b: [a**2 + b**2 - 1]),
        (0.08, 0.06),
        -1,
        (1, 0),
    ),
    "Maratos": Problem(
        scalar(lambda a, b: -a + 2 * (a**2 + b**2 - 1)),
        stack(lambda a, b: [a**2 + b**2 - 1]),
        (0.8, 0.6),
        -1,
        (1, 0),
    ),
}

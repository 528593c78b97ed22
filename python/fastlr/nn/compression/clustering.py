"""k-means of things of which nothing but their similarities is known."""

from __future__ import annotations

import torch
from torch import Tensor

_MOST_STEPS = 100


def clusters(similarity: Tensor, count: int) -> list[list[int]]:
    """Lloyd's k-means of n vectors whose Gram matrix, n × n, is given; members ascend.

    A vector's squared distance to the mean of a cluster is its own square, less twice its mean
    similarity to the members, plus theirs among each other. The first centre is the vector that is
    nearest to the mean of all, each further one that which is the farthest from those before:
    nothing is random. The sum of squares falls with every step, so that it ends.
    """
    centres = _farthest_first(similarity, count)
    label = _distances(similarity, torch.eye(len(similarity), dtype=similarity.dtype)[centres])
    label = label.argmin(0)
    label[centres] = torch.arange(count)
    for _ in range(_MOST_STEPS):
        members = torch.nn.functional.one_hot(label, count).T.to(similarity.dtype)
        distances = _distances(similarity, members / members.sum(1, keepdim=True))
        # A cluster never loses its last member: it is nearest to itself.
        own = distances.gather(0, label[None])[0]
        least, nearest = distances.min(0)
        moved = least < own - 1e-12 * similarity.diagonal().abs().max()
        if not bool(moved.any()):
            break
        # One at a time: two that leave a pair together would empty it.
        first = int((own - least).where(moved, -torch.inf).argmax())
        label[first] = nearest[first]
    return [(label == index).nonzero()[:, 0].tolist() for index in range(count)]


def _distances(similarity: Tensor, weights: Tensor) -> Tensor:
    """Squared distances of all vectors (columns) to weighted means of them (rows)."""
    to_means = weights @ similarity
    of_means = (to_means * weights).sum(1, keepdim=True)
    return similarity.diagonal() - 2 * to_means + of_means


def _farthest_first(similarity: Tensor, count: int) -> list[int]:
    size = len(similarity)
    identity = torch.eye(size, dtype=similarity.dtype)
    mean = torch.full((1, size), 1 / size, dtype=similarity.dtype)
    chosen = [int(_distances(similarity, mean)[0].argmin())]
    while len(chosen) < count:
        nearest = _distances(similarity, identity[chosen]).min(0).values
        nearest[chosen] = -torch.inf
        chosen.append(int(nearest.argmax()))
    return chosen

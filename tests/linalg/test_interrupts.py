"""Ctrl-C stops what is long: between products, between blocks, and while a block is waited for."""

import itertools
import os
import signal
import threading
import time

import pytest
import torch

import fastlr.linalg as la

# Without an interrupt the calls below take minutes.
ENDLESS = 10**6
METHODS = ("subspace", "krylov")


@pytest.fixture(autouse=True)
def ctrl_c_is_heard():
    """A process that was started in the background ignores SIGINT, and Python leaves it at that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def dense(A, **options):
    return la.randomized_svd(A, 20, **options)


def batch(A, **options):
    return la.randomized_svd(A.expand(3, *A.shape), 20, **options)


def operator(A, **options):
    wrapped = la.LinearOperator(A.shape, lambda X: A @ X, lambda Y: A.T @ Y, dtype=A.dtype)
    return la.randomized_svd(wrapped, 20, **options)


def blocks(A, **options):
    return la.randomized_svd(list(A.split(10)), 20, **options)


class Again:
    def __init__(self, A):
        self.A = A

    def __iter__(self):
        return iter(self.A.split(10))


def read_blocks(A, **options):
    return la.randomized_svd(Again(A), 20, **options)


def slow_generator(A, **_):
    def rows():
        for _ in range(ENDLESS):
            time.sleep(0.02)
            yield A

    return la.randomized_svd(rows(), 20)


def endless_stream(A, **_):
    la.streaming_svd(itertools.repeat(A), 3)


def least_squares(*_, **__):
    # What cannot be improved ends after some two thousand steps: of a matrix of this size, seconds.
    A = la.random_matrix(3000, 2000, seed=0)
    la.lstsq(A, torch.ones(len(A)), method="lsqr", tol=0.0, max_iters=ENDLESS)


def low_rank_and_sparse(A, **_):
    la.robust_pca(A, tol=1e-300, max_iters=ENDLESS, seed=0)


@pytest.mark.parametrize(
    ("run", "method"),
    [
        *(
            (run, method)
            for run in (dense, batch, operator, blocks, read_blocks)
            for method in METHODS
        ),
        (slow_generator, None),
        (endless_stream, None),
        (least_squares, None),
        (low_rank_and_sparse, None),
    ],
)
def test_ctrl_c_stops(run, method):
    A = la.random_matrix(300, 200, seed=0)
    sent = []

    def interrupt():
        sent.append(time.perf_counter())
        os.kill(os.getpid(), signal.SIGINT)

    timer = threading.Timer(0.3, interrupt)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        run(A, method=method, power_iters=ENDLESS)
    # A product or a block takes milliseconds, signals are looked at 20 times a second.
    assert time.perf_counter() - sent[0] < 2
    timer.join()
    # A thread that was about to start when the interrupt came ends a moment later.
    while any(each.name.startswith("fastlr") and each.is_alive() for each in threading.enumerate()):
        assert time.perf_counter() - sent[0] < 5, "a reader is left"
        time.sleep(0.01)
    # The interrupted call leaves nothing behind that a next one would trip over.
    assert torch.isfinite(la.randomized_svd(A, 3, seed=0).S).all()

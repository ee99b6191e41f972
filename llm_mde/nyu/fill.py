"""Depth without holes: the colorization of the NYU Depth V2 toolbox, solved directly and exactly.

Levin, Lischinski and Weiss 2004, "Colorization using Optimization", ACM SIGGRAPH, eq. 1-2, as
`fill_depth_colorization.m` of the toolbox of Silberman et al. 2012 uses it on depth
(https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html): every pixel shall equal the mean of its
eight neighbours, weighted by likeness of grey, and known pixels shall keep their depth,

    (A + G) x = G d,    A = I - W,    G = diag(alpha where known, else 0).

W is not symmetric, its rows sum to 1. So A + G is a diagonally dominant M-matrix and needs no
pivoting, and x obeys a maximum principle: it stays within the known depths, and a residual that
lives on known rows means an error of at most max |residual| / alpha. `_solve` rests on both:

- Far from holes, known pixels settle in a few Gauss-Seidel sweeps (each at least halves the error
  where alpha = 1), and the influence of a hole fades just as fast with distance.
- Holes and MARGIN pixels around them are solved directly, by nested dissection (`dissection`).
- Then the bound above is known; should it exceed TOLERANCE, the whole image is solved directly.
"""

import numpy as np
from numpy.typing import NDArray

from llm_mde.errors import DataError
from llm_mde.nyu.compiled import compiled
from llm_mde.nyu.dissection import NEIGHBOURS, Bools, Floats, System, solve_direct

# rgb2gray of the toolbox's runs: the Y of NTSC
GREY = (0.298936, 0.587043, 0.114021)
# fill_depth_colorization.m: csig = 0.6 var, at least -min/log(0.01), at least 2e-6
VARIANCE_SHARE, LEAST_WEIGHT, LEAST_SPREAD = 0.6, 0.01, 2e-6
NO_READING_M = 10.0  # fill_depth_colorization.m: imgDepth == 10 is noise, as is 0
TOLERANCE = 1e-7  # metres
# Pixels around holes and sweeps at most; real frames reach a tenth of TOLERANCE in 10 to 16 sweeps
MARGIN, SWEEPS = 12, 40


@compiled
def _weights(grey: Floats) -> Floats:
    """W of (H, W) grey values 0..1: (H+2, W+2, 8) with a border of zeros, in NEIGHBOURS' order."""
    h, w = grey.shape
    out = np.zeros((h + 2, w + 2, 8))
    square = np.empty(8)
    for i in range(h):
        for j in range(w):
            n, s1, s2, least = 1, 0.0, 0.0, np.inf
            for k in range(8):
                a, b = i + NEIGHBOURS[k][0], j + NEIGHBOURS[k][1]
                square[k] = np.inf
                if 0 <= a < h and 0 <= b < w:
                    d = grey[a, b] - grey[i, j]
                    n, s1, s2 = n + 1, s1 + d, s2 + d * d
                    square[k] = d * d
                    least = min(least, d * d)
            if n == 1:  # an image of one pixel
                continue
            spread = VARIANCE_SHARE * (s2 / n - (s1 / n) ** 2)
            spread = max(spread, -least / np.log(LEAST_WEIGHT), LEAST_SPREAD)
            total = 0.0
            for k in range(8):
                out[i + 1, j + 1, k] = np.exp(-square[k] / spread)
                total += out[i + 1, j + 1, k]
            for k in range(8):
                out[i + 1, j + 1, k] /= total
    return out


@compiled
def _mean(weights: Floats, x: Floats, i: int, j: int) -> float:
    """(W x) at one pixel."""
    v = weights[i, j]
    return (
        (v[0] * x[i - 1, j - 1] + v[1] * x[i - 1, j] + v[2] * x[i - 1, j + 1])
        + (v[3] * x[i, j - 1] + v[4] * x[i, j + 1])
        + (v[5] * x[i + 1, j - 1] + v[6] * x[i + 1, j] + v[7] * x[i + 1, j + 1])
    )


@compiled
def _sweep(system: System, skip: Bools, x: Floats) -> float:
    """One Gauss-Seidel sweep over the pixels not skipped; returns the largest change."""
    worst = 0.0
    for i in range(1, x.shape[0] - 1):
        for j in range(1, x.shape[1] - 1):
            if not skip[i, j]:
                new = (system.b[i, j] + _mean(system.weights, x, i, j)) / system.diagonal[i, j]
                worst = max(worst, abs(new - x[i, j]))
                x[i, j] = new
    return worst


@compiled
def _residual(system: System, x: Floats) -> Floats:
    """What is left of b, zero on the border."""
    out = np.zeros_like(x)
    for i in range(1, x.shape[0] - 1):
        for j in range(1, x.shape[1] - 1):
            mean = _mean(system.weights, x, i, j)
            out[i, j] = system.b[i, j] - system.diagonal[i, j] * x[i, j] + mean
    return out


def _grow(mask: Bools, *, by: int) -> Bools:
    """The mask and the square of `by` pixels around each of its pixels, but not the border."""
    out = mask.copy()
    for _ in range(by):
        out[1:-1] |= out[:-2] | out[2:]
        out[:, 1:-1] |= out[:, :-2] | out[:, 2:]
    return out


def _guess(value: Floats, known: Bools) -> Floats:
    """Unknown pixels from the mean of the known ones in the least 2^k square that has any."""
    if known.all() or not known.any():
        return value
    h, w = known.shape
    fit = ((0, h % 2), (0, w % 2))
    blocks = ((h + 1) // 2, 2, (w + 1) // 2, 2)
    count = np.pad(known.astype(np.float64), fit).reshape(blocks).sum((1, 3))
    total = np.pad(value * known, fit).reshape(blocks).sum((1, 3))
    coarse = _guess(total / np.maximum(count, 1.0), count > 0)
    return np.where(known, value, coarse.repeat(2, 0).repeat(2, 1)[:h, :w])


def _solve(system: System, hole: Bools, *, alpha: float) -> Floats:
    """Solve to TOLERANCE, from the known pixels inwards (see the top of this module)."""
    everywhere = system.diagonal > 0
    x = _guess(system.b / alpha, everywhere & ~hole)
    x[~everywhere] = 0.0
    for _ in range(SWEEPS):
        if _sweep(system, hole, x) <= 0.1 * TOLERANCE * alpha:
            break
    for part in (_grow(hole, by=MARGIN), everywhere):
        x[part] = 0.0
        x += solve_direct(system._replace(b=_residual(system, x)), part)
        bound = np.abs(_residual(system, x)).max() / alpha
        if bound <= TOLERANCE:
            return x
    raise DataError(
        f"fill: expected an error of at most {TOLERANCE} m, got up to {bound:.1e} m; "
        f"alpha = {alpha} is too small to hold the known pixels"
    )


def fill_colorization(
    rgb: NDArray[np.uint8], depth_m: NDArray[np.floating], *, alpha: float = 1.0
) -> Floats:
    """Depth without holes (fill_depth_colorization.m); known pixels move a little, too.

    rgb: (H, W, 3); depth_m: (H, W) metres, no reading where 0 or exactly 10; alpha > 0: how firmly
    known pixels hold. Returns (H, W) metres within TOLERANCE of the exact solution, between the
    least and the largest known depth. Differs from the toolbox in what changes no result (it scales
    depth by its maximum first) and for an image of one pixel, which stays as it is.

    Raises:
        DataError: images that do not fit together, depth that is negative or not finite, no reading
            at all (nothing to fill from), alpha not positive or too small for the arithmetic.
    """
    if rgb.dtype != np.uint8 or rgb.shape != (*depth_m.shape, 3) or depth_m.ndim != 2:
        raise DataError(
            f"fill: expected rgb (H, W, 3) uint8 and depth (H, W), "
            f"got {rgb.shape} {rgb.dtype} and {depth_m.shape}; register or resize them first"
        )
    if not (np.isfinite(depth_m).all() and (depth_m >= 0).all()):
        raise DataError(
            "fill: expected finite depth in metres, got NaN, infinite or negative values; "
            "write 0 where there is no reading"
        )
    if not 0 < alpha < np.inf:
        raise DataError(f"fill: expected alpha > 0, got {alpha}; the toolbox uses 1")
    known = (depth_m != 0) & (depth_m != NO_READING_M)
    if not known.any():
        raise DataError(
            f"fill: expected at least one reading in depth {depth_m.shape}, got none; "
            "skip such a frame, there is nothing to fill it from"
        )
    weights = _weights((rgb / 255.0) @ np.array(GREY))
    firm = np.pad(alpha * known, 1)
    diagonal = firm + np.pad(np.full(known.shape, float(known.size > 1)), 1)
    system = System(weights, diagonal, firm * np.pad(depth_m, 1))
    return _solve(system, (diagonal > 0) & (firm == 0), alpha=alpha)[1:-1, 1:-1]


def fill_mm(rgb: NDArray[np.uint8], depth_mm: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """`fill_colorization` in millimetres, rounded; 10000 and more count as no reading, like 0.

    rgb: (H, W, 3); depth_mm: (H, W). Returns (H, W), 1..9999.

    Raises:
        DataError: as `fill_colorization`.
    """
    metres = np.where(depth_mm < 1000 * NO_READING_M, depth_mm, 0) / 1000.0
    return np.rint(1000.0 * fill_colorization(rgb, metres)).astype(np.uint16)

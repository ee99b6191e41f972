"""What `pack.py` sets hole filling beside, sparse direct solvers, and the toolbox in Octave.

All fill by the equations of the toolbox's fill_depth_colorization.m. Of the solvers, only the
solution of the system counts, not its assembly.
"""

import importlib.util
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

Peers = dict[str, Callable[[], np.ndarray]]


def system_plain(rgb: np.ndarray, depth: np.ndarray) -> tuple[scipy.sparse.csc_matrix, np.ndarray]:
    """A + G and G d of fill_depth_colorization.m, alpha 1, for all pixels at once."""
    h, w = depth.shape
    grey = np.pad((rgb / 255) @ [0.298936, 0.587043, 0.114021], 1, constant_values=np.nan)
    index = np.pad(np.arange(h * w).reshape(h, w), 1, constant_values=-1)
    shifts = [(a, b) for a in range(3) for b in range(3)]
    window = np.stack([grey[a : a + h, b : b + w] for a, b in shifts])
    columns = np.stack([index[a : a + h, b : b + w] for a, b in shifts])
    square = np.delete((window - window[4]) ** 2, 4, 0)  # (8, H, W)
    columns = np.delete(columns, 4, 0)
    spread = np.maximum(0.6 * np.nanvar(window, 0), -np.nanmin(square, 0) / np.log(0.01))
    weights = np.exp(-square / np.maximum(spread, 2e-6))
    weights /= np.nansum(weights, 0)
    inside = columns >= 0
    rows = np.broadcast_to(index[1:-1, 1:-1], columns.shape)
    known = ((depth != 0) & (depth != 10)).ravel()
    near = scipy.sparse.csc_matrix(
        (weights[inside], (rows[inside], columns[inside])), shape=(h * w, h * w)
    )
    return (scipy.sparse.diags(1.0 + known) - near).tocsc(), known * depth.ravel()


def solve_scipy(matrix: scipy.sparse.csc_matrix, right: np.ndarray) -> np.ndarray:
    """SuperLU in symmetric mode with minimum degree on A^T + A: its fastest setting here."""
    return scipy.sparse.linalg.splu(
        matrix,
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    ).solve(right)


def solve_pardiso(matrix: scipy.sparse.csr_matrix, right: np.ndarray) -> np.ndarray:
    """Intel's PARDISO; a new solver each time, because one remembers its factors."""
    from pypardiso import PyPardisoSolver

    solver = PyPardisoSolver()
    x = solver.solve(matrix, right)
    solver.free_memory(everything=True)
    return x


def solvers(rgb: np.ndarray, depth: np.ndarray) -> Peers:
    """The solvers that are installed, for RGB (H, W, 3) and depth (H, W) in metres, 0 = missing."""
    matrix, right = system_plain(rgb, depth)
    rows = matrix.tocsr()
    peers: Peers = {"scipy splu": lambda: solve_scipy(matrix, right).reshape(depth.shape)}
    if importlib.util.find_spec("pypardiso"):
        peers["pypardiso"] = lambda: solve_pardiso(rows, right).reshape(depth.shape)
    return peers


def run_octave(
    toolbox: Path, call: str, inputs: Sequence[np.ndarray], shapes: Sequence[tuple[int, ...]]
) -> tuple[float, list[np.ndarray]]:
    """Milliseconds of a call inside Octave, of `x1`, `x2`, ..., and its results `y1`, `y2`, ..."""
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "in", Path(scratch) / "out"
        source.write_bytes(b"".join(x.astype(float).tobytes("F") for x in inputs))
        code = [f"addpath('{toolbox.resolve()}'); f = fopen('{source}');"]
        for n, x in enumerate(inputs, 1):
            code.append(f"x{n} = reshape(fread(f, {x.size}, 'double'), {list(x.shape)});")
        code.append(f"tic; {call}; t = toc; f = fopen('{target}', 'w'); fwrite(f, t, 'double');")
        code += [f"fwrite(f, y{n}, 'double');" for n in range(1, len(shapes) + 1)]
        command = ["octave-cli", "--norc", "--eval", " ".join([*code, "fclose(f);"])]
        # Octave 7.3 prints a complaint when it leaves by --eval, and the toolbox's nargchk another
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL)
        spent, *values = np.fromfile(target)
    results = []
    for shape in shapes:
        size = int(np.prod(shape))
        results.append(np.reshape(values[:size], shape, order="F"))
        values = values[size:]
    return 1000 * spent, results

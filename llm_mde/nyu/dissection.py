"""Nine-point systems on an image, solved directly by nested dissection.

George 1973, "Nested dissection of a regular finite element mesh", SIAM J. Numer. Anal. 10, in the
multifrontal form of Duff and Reid 1983, ACM Trans. Math. Softw. 9. No pivoting: the matrix has to
be a diagonally dominant M-matrix, as that of `fill` is; it need not be symmetric.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_mde.nyu.compiled import compiled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

NEIGHBOURS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))
# Measured on one core: pixels that are eliminated without further dissection, and entries of a
# pivot block row above which LAPACK beats `_eliminate`
LEAF, SMALL = 16, 2000


class System(NamedTuple):
    """Diagonal x - sum of weights times neighbours = b, on an image with a border of one pixel."""

    weights: Floats  # (H+2, W+2, 8), in NEIGHBOURS' order
    diagonal: Floats  # (H+2, W+2), 0 on the border
    b: Floats  # (H+2, W+2)


@lru_cache(maxsize=8)
def _dissect(h: int, w: int) -> Ints:
    """Dissection of an (h, w) image, children before parents.

    Rows (r0, r1, c0, c1, e0, e1, f0, f1, left): a rectangle, the part of it that is eliminated at
    this node (a separator, or all of a leaf), and the first child, -1 for a leaf. The second child
    is the row before.
    """
    nodes: list[tuple[int, ...]] = []

    def visit(r0: int, r1: int, c0: int, c1: int) -> int:
        if (r1 - r0) * (c1 - c0) <= LEAF:
            nodes.append((r0, r1, c0, c1, r0, r1, c0, c1, -1))
        elif r1 - r0 >= c1 - c0:
            m = (r0 + r1) // 2
            left = visit(r0, m, c0, c1)
            visit(m + 1, r1, c0, c1)
            nodes.append((r0, r1, c0, c1, m, m + 1, c0, c1, left))
        else:
            m = (c0 + c1) // 2
            left = visit(r0, r1, c0, m)
            visit(r0, r1, m + 1, c1)
            nodes.append((r0, r1, c0, c1, r0, r1, m, m + 1, left))
        return len(nodes) - 1

    visit(1, h + 1, 1, w + 1)
    return np.array(nodes, np.int64)


@compiled
def _variables(active: Bools, node: Ints, out: Ints) -> tuple[int, int]:
    """Active pixels, flat, eliminated at a node, then those around its rectangle; both counts."""
    r0, r1, c0, c1 = node[0] - 1, node[1], node[2] - 1, node[3]
    width = active.shape[1]
    n = 0
    for i in range(node[4], node[5]):
        for j in range(node[6], node[7]):
            if active[i, j]:
                out[n] = i * width + j
                n += 1
    e = n
    for i in range(r0, r1 + 1):
        for j in range(c0, c1 + 1, 1 if i in (r0, r1) else c1 - c0):
            if active[i, j]:
                out[n] = i * width + j
                n += 1
    return e, n - e


@compiled
def _plan(active: Bools, nodes: Ints) -> Ints:
    """Rows (e, r, start in rows, start on the stack), then one of totals, for each node."""
    out = np.zeros((len(nodes) + 1, 4), np.int64)
    pixels = np.empty(active.size, np.int64)
    start, top, largest, peak = 0, 0, 0, 0
    for k in range(len(nodes)):
        e, r = _variables(active, nodes[k], pixels)
        if nodes[k, 8] >= 0:
            top = out[nodes[k, 8], 3]
        out[k, 0], out[k, 1], out[k, 2], out[k, 3] = e, r, start, top
        start += e * (r + 1)
        top += r * (r + 1)
        largest, peak = max(largest, e + r), max(peak, top)
    out[-1, 0], out[-1, 2], out[-1, 3] = largest, start, peak
    return out


class _Fronts(NamedTuple):
    """Storage of the elimination; positions are those of `_plan`."""

    front: Floats  # the front of the present node: (n, n+1), right-hand side last
    rows: Floats  # of every node (e, r+1): x of its pixels from x of those around it
    stack: Floats  # Schur complements (r, r+1) that wait for their parents
    place: Ints  # of every pixel: its row in the front, or -1
    pixels: Ints  # the variables of the present node, flat positions
    around: Ints  # those of a child


@compiled
def _assemble(system: System, active: Bools, nodes: Ints, plan: Ints, k: int, s: _Fronts) -> None:
    """Write the front of node k: its rows and columns of the system, and its children's parts."""
    e, r = _variables(active, nodes[k], s.pixels)
    n, width = e + r, active.shape[1]
    m = n + 1
    s.front[: n * m] = 0.0
    for i in range(n):
        s.place[s.pixels[i]] = i
    for i in range(e):
        p = s.pixels[i]
        s.front[i * m + i] = system.diagonal[p]
        s.front[i * m + n] = system.b[p]
        for d in range(8):
            q = p + NEIGHBOURS[d][0] * width + NEIGHBOURS[d][1]
            j = s.place[q]
            if j >= 0:
                s.front[i * m + j] -= system.weights[p, d]
            if j >= e:
                s.front[j * m + i] -= system.weights[q, 7 - d]
    if nodes[k, 8] >= 0:
        for child in (nodes[k, 8], k - 1):
            ce, cr = _variables(active, nodes[child], s.around)
            start = plan[child, 3]
            for a in range(cr):
                s.around[a] = s.place[s.around[ce + a]]
            s.around[cr] = n
            for a in range(cr):
                row, source = s.around[a] * m, start + a * (cr + 1)
                for z in range(cr + 1):
                    s.front[row + s.around[z]] += s.stack[source + z]
    for i in range(n):
        s.place[s.pixels[i]] = -1


@compiled
def _eliminate(front: Floats, e: int) -> None:
    """Gaussian elimination of the first e unknowns of a front (n, n+1), in place.

    Leaves (X, S), (e, r+1) and (r, r+1), in the last columns: x_e = X (-x_r, 1) and S is what
    remains for the others.
    """
    n, m = front.shape
    for k in range(e):
        pivot = front[k, k + 1 :]
        inverse = 1.0 / front[k, k]
        for z in range(m - k - 1):
            pivot[z] *= inverse
        for i in range(k + 1, n):
            factor = front[i, k]
            if factor != 0.0:
                row = front[i, k + 1 :]
                for z in range(m - k - 1):
                    row[z] -= factor * pivot[z]
    for k in range(e - 1, 0, -1):
        pivot = front[k, e:]
        for i in range(k):
            factor = front[i, k]
            if factor != 0.0:
                row = front[i, e:]
                for z in range(m - e):
                    row[z] -= factor * pivot[z]


@compiled
def _factor_small(
    system: System, active: Bools, nodes: Ints, plan: Ints, first: int, s: _Fronts
) -> int:
    """Eliminate nodes from `first` on; stop at a large one, assembled, and return its number."""
    for k in range(first, len(nodes)):
        _assemble(system, active, nodes, plan, k, s)
        e, n = plan[k, 0], plan[k, 0] + plan[k, 1]
        if e * n > SMALL:
            return k
        front = s.front[: n * (n + 1)].reshape(n, n + 1)
        _eliminate(front, e)
        start, top, length = plan[k, 2], plan[k, 3], n + 1 - e
        for i in range(e):
            s.rows[start + i * length : start + (i + 1) * length] = front[i, e:]
        for i in range(n - e):
            s.stack[top + i * length : top + (i + 1) * length] = front[e + i, e:]
    return len(nodes)


@compiled
def _back(active: Bools, nodes: Ints, plan: Ints, s: _Fronts, x: Floats) -> None:
    """Back substitution into flat x, parents first."""
    for k in range(len(nodes) - 1, -1, -1):
        e, r = _variables(active, nodes[k], s.pixels)
        for i in range(e):
            row = plan[k, 2] + i * (r + 1)
            value = s.rows[row + r]
            for z in range(r):
                value -= s.rows[row + z] * x[s.pixels[e + z]]
            x[s.pixels[i]] = value


def solve_direct(system: System, active: Bools) -> Floats:
    """Solve for the active pixels, all others being zero; LAPACK does the large fronts."""
    nodes = _dissect(active.shape[0] - 2, active.shape[1] - 2)
    plan = _plan(active, nodes)
    largest, _, rows, stack = plan[-1]
    s = _Fronts(
        front=np.empty(largest * (largest + 1)),
        rows=np.empty(rows),
        stack=np.empty(stack),
        place=np.full(active.size, -1),
        pixels=np.empty(active.size, np.int64),
        around=np.empty(active.size, np.int64),
    )
    flat = System(system.weights.reshape(-1, 8), system.diagonal.ravel(), system.b.ravel())
    k = _factor_small(flat, active, nodes, plan, 0, s)
    while k < len(nodes):
        e, r, start, top = plan[k]
        front = s.front[: (e + r) * (e + r + 1)].reshape(e + r, e + r + 1)
        rows = s.rows[start : start + e * (r + 1)].reshape(e, r + 1)
        rows[:] = np.linalg.solve(front[:e, :e], front[:e, e:])
        schur = s.stack[top : top + r * (r + 1)].reshape(r, r + 1)
        np.matmul(front[e:, :e], rows, out=schur)
        np.subtract(front[e:, e:], schur, out=schur)
        k = _factor_small(flat, active, nodes, plan, k + 1, s)
    x = np.zeros(active.size)
    _back(active, nodes, plan, s, x)
    return x.reshape(active.shape)

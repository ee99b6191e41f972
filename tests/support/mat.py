"""Small files of the layout of nyu_depth_v2_labeled.mat."""

from pathlib import Path

import h5py
import numpy as np

# Official: 1, 2 and 9 are test images, 3 to 8 training images.
ORIGINS = (
    "kitchen_0004a/d-1294886360.720747-3530341140.pgm",
    "kitchen_0004a/d-1294886362.5-3530341141.pgm",
    "office_0003/d-1294886370.25-1.pgm",
    "office_0003/d-1294886371.25-2.pgm",
    "kitchen_0004b/odd-name.pgm",
)


def arrays(count: int, *, height: int = 480, width: int = 640) -> dict[str, np.ndarray]:
    """MATLAB's arrays as h5py shows them: axes reversed."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 255, (count, 3, width // 40, height // 40), np.uint8)
    raw = np.zeros((count, width, height), np.float32)
    raw[:, 50:600, 40:470] = 2.5
    raw[:, 50, 40] = 1.2344  # (image row 40, column 50)
    raw[:, 51, 40] = 10.2
    filled = np.where(raw > 0, raw, np.float32(3.0))
    return {
        "images": coarse.repeat(40, axis=2).repeat(40, axis=3),
        "rawDepths": raw,
        "depths": filled,
    }


def write(path: Path, *, names=ORIGINS, leave_out=(), **changed) -> Path:
    """A small file as MATLAB's `save -v7.3` lays it out: user block, references, deflate."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, array in (arrays(len(names)) | changed).items():
            if name not in leave_out:
                chunks = (1, *array.shape[1:-1], max(1, array.shape[-1] // 4))
                file.create_dataset(name, data=array, chunks=chunks, compression="gzip")
        letters = file.create_group("#refs#")
        references = np.empty((1, len(names)), h5py.ref_dtype)
        for i, name in enumerate(names):
            text = np.frombuffer(name.encode("utf-16-le"), np.uint16).reshape(-1, 1)
            references[0, i] = letters.create_dataset(f"r{i}", data=text).ref
        if "rawDepthFilenames" not in leave_out:
            cells = file.create_dataset("rawDepthFilenames", data=references)
            cells.attrs["MATLAB_class"] = np.bytes_("cell")
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(128))
    return path

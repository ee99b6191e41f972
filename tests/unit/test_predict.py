"""Image files to depth files: every kind of image, whole files, clear refusals."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm_mde import figures
from llm_mde.errors import CheckpointError, DataError
from llm_mde.inference import adapter
from llm_mde.inference.image import as_rgb, check_image, read_image
from llm_mde.inference.predict import depth_of, predict
from llm_mde.model.depth_model import DepthModel
from tests.support.run import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def rgb(height: int = 30, width: int = 50) -> np.ndarray:
    v, u = np.mgrid[0:height, 0:width]
    image = np.stack([u * 255 // width, v * 255 // height, (u + v) % 256], axis=-1)
    return image.astype(np.uint8)  # (H, W, 3)


def write(path: Path, image: Image.Image | np.ndarray, **options: object) -> Path:
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(path, **options)
    return path


def test_millimetre_png_is_the_prediction_to_half_a_millimetre(run: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "room.png", rgb())
    (made,) = predict([path], adapter=run, out=tmp_path / "new" / "out")
    assert made.depth == tmp_path / "new" / "out" / "room_depth_mm.png"
    assert made.figure == tmp_path / "new" / "out" / "room_depth.png"
    want = depth_of(adapter.load(run), rgb())
    with Image.open(made.depth) as depth:
        assert depth.mode == "I;16"
        found = np.asarray(depth)
    assert found.shape == want.shape == (30, 50)
    assert found.dtype == np.uint16
    assert want.min() > 0.1 and want.max() < 10
    assert np.abs(found / 1000 - want).max() <= 0.0005 + 1e-6
    with Image.open(made.figure) as figure:
        assert figure.mode in ("RGB", "RGBA") and figure.width > 500
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == [
        "room_depth.png",
        "room_depth_mm.png",
    ]


def test_many_images_are_reported_one_by_one(run: Path, tmp_path: Path) -> None:
    images = [write(tmp_path / f"{name}.jpg", rgb()) for name in "abc"]
    seen: list[tuple[int, int]] = []
    made = predict(
        images,
        adapter=run / "adapter",
        out=tmp_path / "out",
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [item.image for item in made] == images
    assert len(list((tmp_path / "out").iterdir())) == 6
    assert made[0].payload() == {
        "image": str(images[0]),
        "depth": str(tmp_path / "out" / "a_depth_mm.png"),
        "figure": str(tmp_path / "out" / "a_depth.png"),
    }


@pytest.mark.parametrize("size", [(1, 1), (1, 10), (10, 1)])
def test_tiny_images_get_depth_of_their_size(run: Path, tmp_path: Path, size) -> None:
    path = write(tmp_path / "dot.png", rgb(*size))
    (made,) = predict([path], adapter=run, out=tmp_path / "out")
    with Image.open(made.depth) as depth:
        assert (depth.height, depth.width) == size


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = rgb()[..., 0]
    found = read_image(write(tmp_path / "grey.png", grey))
    assert np.array_equal(found, np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_is_scaled_to_8_bit(tmp_path: Path, suffix: str) -> None:
    levels = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    found = read_image(write(tmp_path / f"grey.{suffix}", levels))
    assert found[0, :, 0].tolist() == [0, 0, 1, 1, 128, 255]
    assert (found == found[..., :1]).all()


def test_alpha_is_dropped(tmp_path: Path) -> None:
    alpha = np.full((30, 50, 1), 7, np.uint8)
    found = read_image(write(tmp_path / "alpha.png", np.concatenate([rgb(), alpha], axis=-1)))
    assert np.array_equal(found, rgb())
    grey = Image.fromarray(np.dstack([rgb()[..., 0], alpha[..., 0]]), mode="LA")
    assert np.array_equal(
        read_image(write(tmp_path / "la.png", grey)), np.stack([rgb()[..., 0]] * 3, axis=-1)
    )


def test_palettes_and_cmyk_become_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (6, 4), (250, 0, 0))
    for path in (
        write(tmp_path / "palette.png", red.quantize(4), transparency=b"\x00\x10"),
        write(tmp_path / "print.jpg", red.convert("CMYK"), quality=100),
        write(tmp_path / "picture.gif", red),
    ):
        found = read_image(path).astype(int)
        assert found.shape == (4, 6, 3)
        assert np.abs(found - [250, 0, 0]).max() <= 3


def test_the_cameras_rotation_is_applied(run: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned a quarter to the left (Exif 2.32, table 4, Orientation)
    path = write(tmp_path / "phone.png", rgb(), exif=exif)
    assert np.array_equal(read_image(path), np.rot90(rgb(), -1))
    (made,) = predict([path], adapter=run, out=tmp_path / "out")
    with Image.open(made.depth) as depth:
        assert depth.size == (30, 50)


@pytest.mark.parametrize("turn", [5, 6, 8])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_uncompressed_grey_tiff_is_turned_as_well(
    tmp_path: Path, turn: int, dtype: type
) -> None:
    grey = np.arange(6, dtype=dtype).reshape(2, 3) * (40 if dtype is np.uint8 else 40 * 257)
    path = tmp_path / "grey.tif"
    Image.fromarray(grey).save(path, tiffinfo={274: turn})
    upright = {5: grey.T, 6: np.rot90(grey, -1), 8: np.rot90(grey)}[turn]
    want = upright if dtype is np.uint8 else upright // 257
    assert np.array_equal(read_image(path)[..., 0], want)


def test_of_an_animation_the_first_picture_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (6, 4), colour) for colour in ("red", "blue", "green")]
    path = tmp_path / "moving.gif"
    frames[0].save(path, save_all=True, append_images=frames[1:])
    assert read_image(path)[0, 0].tolist() == [255, 0, 0]


def test_pictures_in_memory_are_what_files_are(run: Path, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = write(tmp_path / "phone.png", rgb(), exif=exif)
    with Image.open(path) as opened:
        assert np.array_equal(as_rgb(opened), read_image(path))
        found = depth_of(adapter.load(run), opened)
    assert found.shape == (50, 30)
    assert np.array_equal(found, depth_of(adapter.load(run), read_image(path)))


def test_arrays_of_every_layout_are_pictures() -> None:
    want, grey = rgb(), rgb()[..., 0]
    repeated = np.stack([grey] * 3, axis=-1)
    alpha = np.concatenate([want, want[..., :1]], axis=-1)
    for array, found in (
        (want, want),
        (grey, repeated),
        (grey[..., None], repeated),
        (alpha, want),
        (want[::-1, ::-1], want[::-1, ::-1]),
    ):
        assert np.array_equal(as_rgb(array), found)


NAN = np.full((4, 5, 3), 0.5, np.float32)
NAN[0, 0, :2] = np.nan, np.inf


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (NAN, r"got float32 \(4, 5, 3\) with 2 values that are NaN or infinite"),
        (np.zeros((4, 5, 3)), r"array uint8 .* of 0\.\.255, got float64 \(4, 5, 3\)$"),
        (np.zeros((4, 5), np.uint16), r"got uint16 \(4, 5\)"),
        (np.zeros((3, 4, 5), np.uint8), r"got uint8 \(3, 4, 5\)"),
        (np.zeros((1, 4, 5, 3), np.uint8), r"got uint8 \(1, 4, 5, 3\)"),
        (np.zeros((0, 5, 3), np.uint8), "5x0 pixels, expected at least 1x1"),
        ("room.jpg", "got str"),
        (Image.new("F", (4, 4)), "floating-point pixels"),
        (Image.new("La", (4, 4)), "pixels of kind La, expected grey, RGB"),
        (Image.new("LAB", (4, 4)), "pixels of kind LAB, expected grey, RGB"),
        (Image.new("1", (20000, 20000)), "20000x20000 pixels, expected at most 50000000"),
    ],
)
def test_what_is_no_picture_is_named(image: object, message: str) -> None:
    with pytest.raises(DataError, match=rf"^image: .*{message}"):
        as_rgb(image)


def test_the_network_sees_the_backbones_own_interpolation(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapter.load(run)
    seen: list[np.ndarray] = []
    predict_tensor = model.predict

    def record(image, size=None):
        seen.append(image[0].permute(1, 2, 0).numpy())
        return predict_tensor(image, size)

    monkeypatch.setattr(model, "predict", record)
    noise = np.random.default_rng(0).integers(0, 256, (300, 500, 3), np.uint8)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    for name, resampling in filters.items():
        model.vit.interpolation = name
        depth_of(model, noise)
        want = np.asarray(Image.fromarray(noise).resize((128, 96), resampling))
        assert np.abs(seen[-1].astype(int) - want).max() <= 1  # antialiased, as Pillow does


def test_nothing_is_written_when_one_input_is_no_image(run: Path, tmp_path: Path) -> None:
    good = write(tmp_path / "good.png", rgb())
    text = tmp_path / "notes.txt"
    text.write_text("not a picture")
    empty = tmp_path / "empty.jpg"
    empty.touch()
    for bad, message in (
        (text, r"notes\.txt: not an image that can be read \(JPEG, PNG"),
        (empty, r"empty\.jpg: empty file, not an image"),
        (tmp_path, r"is a folder, expected image files; try .*/\*\.jpg"),
        (tmp_path / "none.png", r"none\.png: no such file"),
    ):
        with pytest.raises(DataError, match=message):
            predict([good, bad], adapter=run, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_truncated_image_is_named(run: Path, tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(
        file, "JPEG"
    )
    path = tmp_path / "cut.jpg"
    path.write_bytes(file.getvalue()[:2000])
    with pytest.raises(DataError, match=r"cut\.jpg: damaged image \(.*truncated"):
        predict([path], adapter=run, out=tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_images_that_claim_too_much_are_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.ppm"
    path.write_bytes(b"P6 10000 9000 255\n")
    with pytest.raises(DataError, match=r"huge\.ppm: 10000x9000 pixels, expected at most 50000000"):
        check_image(path)
    path.write_bytes(b"P6 100000 90000 255\n")
    with pytest.raises(DataError, match="too large, expected at most 50000000 pixels"):
        check_image(path)
    with pytest.raises(DataError, match=r"1x11 pixels, expected sides in a ratio of at most 10"):
        check_image(write(tmp_path / "strip.png", rgb(11, 1)))


def test_floating_point_images_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "depth.tif", np.ones((4, 4), np.float32))
    with pytest.raises(DataError, match="floating-point pixels, expected 8 or 16 bit"):
        check_image(path)


def test_files_of_two_images_may_not_meet(run: Path, tmp_path: Path) -> None:
    one, two = write(tmp_path / "a.png", rgb()), write(tmp_path / "a.jpg", rgb())
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png would write .*a_depth_mm\.png"):
        predict([one, two], adapter=run, out=tmp_path)
    taken = write(tmp_path / "a_depth.png", rgb())
    with pytest.raises(DataError, match=r"is an image and the prediction of .*a\.png; choose"):
        predict([one, taken], adapter=run, out=tmp_path)
    assert np.array_equal(read_image(taken), rgb())


def test_out_that_is_a_file_is_refused(run: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", rgb())
    with pytest.raises(DataError, match=r"a\.png: no folder can be made there"):
        predict([path], adapter=run, out=path)


def test_both_files_or_neither(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, out = write(tmp_path / "a.png", rgb()), tmp_path / "out"

    def full_disk(depth: np.ndarray, path: Path) -> Path:
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(figures, "depth_figure", full_disk)
    with pytest.raises(OSError, match="no space"):
        predict([path], adapter=run, out=out)
    assert not list(out.iterdir())


def test_depth_beyond_16_bit_stays_at_the_largest_value(run: Path, tmp_path: Path) -> None:
    far = tmp_path / "far"
    model = adapter.load(run)
    config = model.config.model_copy(update={"max_depth": 500.0})
    fresh = DepthModel(config, seed=0)
    state = {name: fresh.state_dict()[name].clone() for name in fresh.trainable_state()}
    state["head.logit.bias"] += 9
    adapter.save(config, state, far, seed=0, scores={})
    path = write(tmp_path / "a.png", rgb())
    (made,) = predict([path], adapter=far, out=tmp_path / "out")
    with Image.open(made.depth) as depth:
        assert set(np.unique(np.asarray(depth))) == {65535}


def test_a_folder_without_adapter_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", rgb())
    with pytest.raises(CheckpointError, match="no llm_mde.json found"):
        predict([path], adapter=tmp_path, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()

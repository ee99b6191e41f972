"""torch.export and ONNX through the command, opened by torch and by onnxruntime alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from llm_mde import DepthModel
from llm_mde.cli import main
from tests.support.run import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def noise(batch: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(batch)
    return torch.randint(0, 256, (batch, 3, 96, 128), dtype=torch.uint8, generator=generator)


def test_pt2_is_the_live_model_for_any_batch(run: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "model.pt2"
    assert main(["export", "pt2", str(run), "--out", str(out), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert made["out"] == str(out)
    assert made["size"] == out.stat().st_size
    assert made["relative"] <= made["bound"] == 1e-4
    program = torch.export.load(out).module()
    live = DepthModel.from_pretrained(run)
    for batch in (1, 5):
        with torch.no_grad():
            torch.testing.assert_close(program(noise(batch)), live(noise(batch)), rtol=1e-4, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def test_onnx_is_the_live_model_for_any_batch(run: Path, tmp_path: Path, capfd) -> None:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="pip install 'llm-mde[export]'")
    runtime = pytest.importorskip("onnxruntime", reason="pip install 'llm-mde[export]'")
    out = tmp_path / "model.onnx"
    assert main(["export", "onnx", str(run), "--out", str(out)]) == 0
    printed = capfd.readouterr()
    assert "onnx, " in printed.out and "(bound 0.0001)" in printed.out
    assert "Evaluation failed" not in printed.err
    session = runtime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (image,), (depth,) = session.get_inputs(), session.get_outputs()
    assert (image.name, image.type, image.shape[1:]) == ("image", "tensor(uint8)", [3, 96, 128])
    assert (depth.name, depth.type, depth.shape[1:]) == ("depth", "tensor(float)", [1, 96, 128])
    live = DepthModel.from_pretrained(run)
    for batch in (1, 5):
        (found,) = session.run(None, {"image": noise(batch).numpy()})
        with torch.no_grad():
            want = live(noise(batch)).numpy()
        np.testing.assert_allclose(found, want, rtol=1e-4)

"""What `llm-mde doctor` finds amiss, one thing at a time."""

import json
from typing import Any

import pytest

from llm_mde.cli import main
from llm_mde.training import doctor
from llm_mde.training.doctor import Finding, examine


def found(what: str) -> Finding:
    report = examine(distributed=False)
    assert report is not None
    [finding] = [one for one in report.findings if one.what == what]
    assert report.ok is all(one.state != "fail" for one in report.findings)
    return finding


def test_this_machine_can_train(capsys: Any, tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    whats = [one["what"] for one in told["findings"]]
    assert whats[:4] == ["python", "packages", "torchvision", "compiler"] and told["ok"]
    assert whats[-2:] == ["model.vit", "model.llm"]
    assert not list(tmp_path.iterdir())  # no store was made by looking for it


def test_a_version_that_does_not_fit_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "0.1" if name == "timm" else real(name))
    finding = found("packages")
    assert finding.state == "fail"
    assert "timm>=1.0.31 (got 0.1)" in finding.said and "torch" not in finding.said


def test_a_pair_that_does_not_fit_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    finding = found("torchvision")
    assert finding.state == "fail"
    assert "torchvision::nms does not exist; install both" in finding.said


def test_a_missing_compiler_has_a_remedy(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None if "+" in name else name)
    assert main(["doctor"]) == 0  # all but train.compile works without
    line = "note  compiler: none for C++ found, which train.compile needs; apt-get install g++"
    assert line in capsys.readouterr().out


def test_a_store_that_does_not_answer_is_amiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    finding = found("tracking")
    assert finding.state == "fail" and finding.said.startswith("http://127.0.0.1:9: ")
    assert finding.said.endswith("; training goes on without it")


def test_a_stores_password_is_not_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:hunter2@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said = found("tracking").said
    assert said.startswith("http://***@127.0.0.1:9: ") and "hunter2" not in said


def test_an_old_store_of_files_is_amiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:./mlruns")
    finding = found("tracking")
    assert finding.state == "fail" and "mlflow migrate-filestore" in finding.said


def test_a_folder_that_can_not_be_written_is_amiss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert found("runs").state == "fail"


def test_a_gpu_without_bf16_is_amiss(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = doctor.torch.cuda
    monkeypatch.setattr(cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "device_count", lambda: 2)
    monkeypatch.setattr(cuda, "get_device_name", lambda at: f"GPU {at}")
    monkeypatch.setattr(cuda, "is_bf16_supported", lambda: True)
    assert found("devices") == Finding("devices", "ok", "2 x GPU 0, bf16")
    monkeypatch.setattr(cuda, "is_bf16_supported", lambda: False)
    assert found("devices").state == "fail"

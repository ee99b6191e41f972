import ast
import subprocess
import sys
from pathlib import Path

import pytest

import llm_mde

ROOT = Path(llm_mde.__file__).parent
# Who may import whom: only names further up, and inside a room only names to the left.
ROOMS = (
    (
        "",
        "errors credentials fields config recipes launcher clone locks pulse dist progress "
        "figures axis charts coloured",
    ),
    ("nyu.", "frame raw compiled kinect dissection fill scenes labeled pattern aligned dumps"),
    ("nyu.rooms.", "paint solids decor furniture fittings design raycast views sensor"),
    ("nyu.", "synth"),
    (
        "data.",
        "store cache folder kept record members columns index samples sources shard lists layout "
        "workers estimate claim merge page report pack scan verify show plan augment pixels "
        "loaders stream",
    ),
    ("model.", "vit vocabulary language prompt prototypes reprogram lora head depth_model"),
    ("scoring.", "losses metrics protocols baselines evaluate bootstrap"),
    (
        "tracking.",
        "tracker about address recorded connection calls mlflow background sync registry ui",
    ),
    (
        "training.",
        "stopping ds statistics engine state checkpoint system meter legend run record validate "
        "loop folder identity preflight doctor train",
    ),
    ("inference.", "card adapter image predict score pretrained export"),
    (
        "studies.",
        "process told demo rules space paper summary grid document tables report lineage runs "
        "comparison compare share programs "
        "trials live records labels board factors importance effects findings winner sensitivity "
        "bayes plan sweep_plan schedule forecast sweep results agenda attempt experiments",
    ),
    ("commands.", "options shards models studies track"),
    ("", "cli __main__"),
)
ORDER = [room + name for room, names in ROOMS for name in names.split()]
HOMES = {
    "timm": {"model.vit"},
    "transformers": {"model.language", "model.prompt"},
    "peft": {"model.lora", "inference.adapter"},
    "webdataset": {"data.stream"},
    "deepspeed": {"training.engine"},
    "mlflow": {f"tracking.{name}" for name in ("connection", "calls", "mlflow", "registry", "ui")},
    "h5py": {"nyu.labeled"},
    "huggingface_hub": {"data.store", "model.vit", "training.doctor", "inference.pretrained"},
    "onnxruntime": {"inference.export"},
    "numba": {"nyu.compiled"},
    "threadpoolctl": {"data.shard"},
    "pcodec": {"data.record"},
    "ray": {"studies.trials", "studies.schedule", "studies.bayes", "data.workers"},
    "optuna": {"studies.bayes"},
    "torch.distributed": {"dist"},
    "rich": {"progress"},
    "fsspec": {"data.store"},
    "typer": {
        "cli",
        *(f"commands.{name}" for name in ["options", "shards", "models", "studies", "track"]),
    },
    "matplotlib": {"figures", "axis", "charts", "coloured"},
}
HEAVY = ("torch", "deepspeed", "ray", "mlflow", "transformers", "timm", "matplotlib", "webdataset")
BLIND = (
    "dist",
    "launcher",
    "progress",
    "tracking",
    "time",
)  # what the network and its scores do not see


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


MODULES = {name_of(path): path for path in ROOT.rglob("*.py") if path.name != "__init__.py"}


def imported(path: Path) -> set[str]:
    """Every name that a module imports, wherever in the file, `from a import b` as a and a.b."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own(path: Path) -> set[str]:
    return {name.removeprefix("llm_mde.") for name in imported(path)} & set(MODULES)


def test_every_module_has_its_place_in_the_order():
    assert sorted(set(MODULES) - set(ORDER)) == []
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_to_the_left(name):
    wrong = [other for other in own(MODULES[name]) if ORDER.index(other) >= ORDER.index(name)]
    assert wrong == []


@pytest.mark.parametrize("library", HOMES)
def test_heavy_libraries_stay_in_their_homes(library):
    users = {
        name
        for name, path in MODULES.items()
        if any(other == library or other.startswith(f"{library}.") for other in imported(path))
    }
    assert users <= HOMES[library]


@pytest.mark.parametrize(
    "name",
    [n for n in MODULES if n.startswith("model.")] + ["scoring.losses", "scoring.metrics"],
)
def test_network_and_scores_see_no_ranks_trackers_and_clocks(name):
    seen = {other.removeprefix("llm_mde.").split(".")[0] for other in imported(MODULES[name])}
    assert sorted(seen & set(BLIND)) == []


def loaded_after(code: str) -> set[str]:
    """Heavy libraries in a fresh interpreter after some code."""
    report = f"\nimport sys; print(*({set(HEAVY)} & set(sys.modules)), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", code + report],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.splitlines()[-1].split())


def test_packing_and_generating_load_nothing_heavy():
    code = "import llm_mde.nyu.raw, llm_mde.nyu.synth, llm_mde.data.pack"
    assert loaded_after(code) == set()


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["pack", "--help"]])
def test_help_loads_nothing_heavy(words):
    code = (
        f"import runpy, sys\nsys.argv = ['llm-mde', *{words}]\n"
        "try:\n    runpy.run_module('llm_mde', run_name='__main__')\n"
        "except SystemExit as end:\n    assert not end.code, end.code"
    )
    assert loaded_after(code) == set()


def test_a_rank_loads_neither_the_store_nor_the_compiler():
    """DeepSpeed would load both: two seconds of each rank. Who asks for them still has them."""
    code = (
        "import sys, llm_mde.training.train, deepspeed.runtime.zero.muon.muon_optimizer\n"
        "assert not {'mlflow', 'torch._inductor.compile_fx'} & set(sys.modules)\n"
        "import mlflow, torch\n"
        "assert mlflow.log_metric and torch.compile(lambda: 3, backend='eager')() == 3"
    )
    assert "mlflow" in loaded_after(code)


def test_environment_is_read_in_its_places():
    # For the processes they start.
    writers = {"studies.trials", "studies.process", "data.loaders", "tracking.ui"}
    users = {name for name, path in MODULES.items() if "os.environ" in path.read_text("utf-8")}
    # of `credentials`: what may not be in a configuration, and is for MLflow and children
    assert users <= {"credentials", "config", "launcher", "dist"} | writers

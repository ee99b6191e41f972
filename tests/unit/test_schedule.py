"""Schedulers that decide by chance do so by the seed of the space."""

from pathlib import Path
from types import SimpleNamespace

from llm_mde.studies.rules import Rule
from llm_mde.studies.schedule import scheduler_of
from llm_mde.studies.space import Base, Search, Space


def drawn(seed: int, folder: Path) -> list[float]:
    """Rates that a population's trial goes on with from another one's 0.2, nine times."""
    search = Search(scheduler="pbt", grace=3, seed=seed)
    space = Space(name="s", parameters={"optim.lr": Rule(uniform=(0.1, 0.4))}, search=search)
    (folder / "base.yaml").write_text("{}\n")
    scheduler = scheduler_of(search, Base(space, folder / "base.yaml", (), {}), steps=9)
    best = SimpleNamespace(config={"trial": {"name": "b", "settings": {"optim.lr": 0.2}}})
    configs = [scheduler._get_new_config(best, best)[0] for _ in range(9)]
    return [config["trial"]["settings"]["optim.lr"] for config in configs]


def test_a_population_draws_by_its_seed(tmp_path: Path) -> None:
    assert drawn(1, tmp_path) == drawn(1, tmp_path)
    assert drawn(1, tmp_path) != drawn(2, tmp_path)


def test_a_population_perturbs_by_a_fifth_or_draws_anew(tmp_path: Path) -> None:
    rates = drawn(0, tmp_path)
    assert all(0.1 <= rate <= 0.4 for rate in rates)
    assert {round(rate, 9) for rate in rates} & {0.16, 0.24}

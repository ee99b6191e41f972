"""Trials through Ray, without training: who is stopped early, who is begun again."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from llm_mde.studies.bayes import Bayes
from llm_mde.studies.live import Live
from llm_mde.studies.rules import Rule
from llm_mde.studies.schedule import scheduler_of
from llm_mde.studies.share import Share
from llm_mde.studies.space import Base, Search, Space
from llm_mde.studies.trials import Ended, How, run_trials
from llm_mde.training.checkpoint import choose, read_state
from tests.support.trials import STEPS, inheriting, saved_in, work

TRIALS = {
    "good": {"score": 0.1},
    "dies": {"score": 0.1},
    "fails": {"score": 0.1},
    "bad": {"score": 0.9},
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Ended], Path]:
    folder = tmp_path_factory.mktemp("trials")
    # One after the other: the good ones are there before the bad one is judged.
    search = Search(scheduler="asha", grace=3)
    base = Base(Space(name="s", trials=TRIALS, search=search), Path("none"), (), {})
    how = How(folder, Share(1), None, scheduler_of(search, base, steps=STEPS))
    watch = Live(dict.fromkeys(TRIALS, STEPS), total=len(TRIALS))
    ended = run_trials(partial(work, notes=folder), TRIALS, how, of=len(TRIALS), watch=watch)
    return ended, folder


def test_a_scheduler_ends_a_bad_trial_in_an_orderly_way(
    ran: tuple[dict[str, Ended], Path],
) -> None:
    ended, folder = ran
    assert ended["bad"].stopped and not ended["good"].stopped
    assert (folder / "bad.closed").is_file() and not (folder / "good.closed").exists()


def test_a_lost_worker_s_trial_begins_again_a_failed_one_does_not(
    ran: tuple[dict[str, Ended], Path],
) -> None:
    ended, folder = ran
    assert ended["dies"].error is None and (folder / "dies.began").read_text() == "xx"
    assert ended["fails"].error == "no luck" and (folder / "fails.began").read_text() == "x"


def test_the_median_rule_outlives_a_trial_that_fails_at_once(tmp_path: Path) -> None:
    trials = {"fails": {"score": 0.1, "fail_at": 1}}
    trials |= {name: {"score": 0.1} for name in ("a", "b", "c")} | {"bad": {"score": 0.9}}
    search = Search(scheduler="median", grace=3)
    base = Base(Space(name="s", trials=trials, search=search), Path("none"), (), {})
    how = How(tmp_path, Share(1), None, scheduler_of(search, base, steps=STEPS))
    watch = Live({}, total=len(trials))
    work_here = partial(work, notes=tmp_path)
    ended = run_trials(work_here, trials, how, of=len(trials), watch=watch)
    assert ended["fails"].error == "no luck"
    assert {name for name, end in ended.items() if end.stopped} == {"bad"}
    assert [ended[name].error for name in ("a", "b", "c", "bad")] == [None] * 4


def test_optuna_suggests_as_many_trials_as_asked_for(tmp_path: Path) -> None:
    rules = {"score": Rule(uniform=(0.0, 1.0))}
    searcher = Bayes(rules, {}, [], seed=0, check=lambda name, settings: None)
    watch = Live({}, total=4)
    ended = run_trials(
        partial(work, notes=tmp_path),
        {},
        How(tmp_path, Share(2)),
        of=4,
        watch=watch,
        more=searcher,
        samples=4,
    )
    assert sorted(ended) == ["t000", "t001", "t002", "t003"]
    assert all(one.error is None and not one.stopped for one in ended.values())
    assert {seen.step for seen in watch.seen.values()} == {STEPS}


class Settings(Live):
    """Notes what each trial runs with, whenever it starts."""

    def __init__(self) -> None:
        super().__init__({}, total=2)
        self.heard: dict[str, list[float]] = {}

    def started(self, name: str, settings: dict[str, Any]) -> None:
        super().started(name, settings)
        self.heard.setdefault(name, []).append(settings["optim.lr"])


def test_the_worst_of_a_population_goes_on_from_the_best(tmp_path: Path) -> None:
    search = Search(scheduler="pbt", grace=3)
    rules = {"optim.lr": Rule(uniform=(0.1, 0.4)), "optim.eps": Rule(times="optim.lr")}
    space = Space(name="s", parameters=rules, search=search)
    trials = {name: {"optim.lr": lr, "optim.eps": lr} for name, lr in (("a", 0.1), ("b", 0.4))}
    (tmp_path / "base.yaml").write_text("{}\n")
    scheduler = scheduler_of(search, Base(space, tmp_path / "base.yaml", (), {}), steps=STEPS)
    how = How(tmp_path, Share(2), None, scheduler, partial(saved_in, tmp_path))
    watch = Settings()
    work = partial(inheriting, notes=tmp_path)
    ended = run_trials(work, trials, how, of=2, watch=watch)
    assert [ended[name].error for name in "ab"] == [None, None]
    last = {
        name: read_state(choose(tmp_path / f"run-{name}" / "checkpoints", "auto")) for name in "ab"
    }
    assert last == {name: {"step": STEPS, "of": "a"} for name in "ab"}
    first, *later = watch.heard["b"]
    assert first == 0.4 and later and all(0.1 <= lr <= 0.4 for lr in later)

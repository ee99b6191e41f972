"""A run goes on with other numbers of ranks and other ZeRO stages as if it had not changed."""

import pytest
import torch

from llm_mde import dist
from llm_mde.errors import ConfigError
from llm_mde.training.stopping import DONE, REQUEUE
from llm_mde.training.validate import validate
from tests.support.ranks import run_ranks
from tests.support.training import begin, ds_json, make_shards, tiny_config, watched_run

# Four micro-batches a step and dropout, whose masks belong to the micro-batch. Four steps an epoch:
# changes inside an epoch, at its end and after an evaluation.
CHANGES = {
    "train__batch": 8,
    "train__max_steps": 8,
    "train__eval_every": 1,
}
# (ranks, ZeRO stage, the step before which they stop)
MOVES = {
    "ranks": [(2, 2, 3), (1, 2, 4), (4, 2, 6), (2, 2, None)],
    "stages": [(2, 1, 2), (2, 3, 5), (2, 0, None)],
}
BF16 = {"bf16": {"enabled": True}}


def config(folder, name):
    return tiny_config(folder / "shards", folder, name, **CHANGES)


def undisturbed(rank, folder):
    seen = watched_run(config(folder, "undisturbed"), ds_json(2))
    torch.save(seen, folder / f"undisturbed-rank{rank}.pt")


def move(rank, folder, name, at, stage, stop):
    seen = watched_run(config(folder, name), ds_json(stage), stop_at=stop)
    torch.save(seen, folder / f"{name}-{at}-rank{rank}.pt")


def move_in_bf16(rank, folder):
    """From ZeRO 2 to none and back to 1, where DeepSpeed's JSON differs in more than the stage."""
    seen = [
        watched_run(config(folder, "bf16"), ds_json(stage, **BF16), stop_at=stop)
        for stage, stop in ((2, 2), (0, 4), (1, None))
    ]
    torch.save(
        [(part.start, part.code, part.keys) for part in seen], folder / f"bf16-rank{rank}.pt"
    )


def refuse(rank, folder):
    with pytest.raises(ConfigError, match=r"3 ranks .* possible numbers of ranks: 1, 2, 4$"):
        begin(config(folder, "undisturbed"), ds_json(2))


def score(rank, folder):
    run, _ = begin(config(folder, f"scores {dist.world()}"), ds_json(0))
    torch.save(validate(run, 0), folder / f"scores-world{dist.world()}-rank{rank}.pt")
    run.engine.destroy()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("worlds")
    make_shards(made / "shards")
    run_ranks(undisturbed, 2, made)
    return made


@pytest.fixture(scope="module", params=MOVES)
def moved(request, folder):
    """What rank 0 saw of each part, and the keys of each micro-batch in the plan's order."""
    name, parts, keys = request.param, [], []
    for at, (ranks, stage, stop) in enumerate(MOVES[request.param]):
        run_ranks(move, ranks, folder, name, at, stage, stop)
        seen = [
            torch.load(folder / f"{name}-{at}-rank{rank}.pt", weights_only=False)
            for rank in range(ranks)
        ]
        keys += [each for turn in zip(*(one.keys for one in seen), strict=True) for each in turn]
        parts.append(seen[0])
    return parts, keys


@pytest.fixture(scope="module")
def whole(folder):
    seen = [
        torch.load(folder / f"undisturbed-rank{rank}.pt", weights_only=False) for rank in (0, 1)
    ]
    return seen[0], [
        each for turn in zip(*(one.keys for one in seen), strict=True) for each in turn
    ]


def rows(seen, name):
    return {row["step"]: row[name] for row in seen.rows if name in row}


def test_samples_losses_and_scores_are_those_of_the_undisturbed_run(whole, moved):
    (undisturbed, want), (parts, got) = whole, moved
    assert [part.code for part in parts] == [REQUEUE] * (len(parts) - 1) + [DONE]
    assert got == want and len(want) == 4 * 8
    for name in ("train/loss", "train/lr", "val/loss", "val/abs_rel"):
        assert rows(parts[-1], name) == pytest.approx(rows(undisturbed, name), rel=1e-5)
    assert len(rows(undisturbed, "train/loss")) == 8 and len(rows(undisturbed, "val/loss")) == 2


def test_batch_norm_statistics_are_too(whole, moved):
    (undisturbed, _), (parts, _) = whole, moved
    got = [step for part in parts for step in part.statistics]
    assert len(got) == len(undisturbed.statistics) == 8
    for mine, theirs in zip(got, undisturbed.statistics, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_stages_may_change_in_bf16_too(folder, whole):
    run_ranks(move_in_bf16, 2, folder)
    ranks = [torch.load(folder / f"bf16-rank{rank}.pt") for rank in (0, 1)]
    assert [part[:2] for part in ranks[0]] == [(0, REQUEUE), (2, REQUEUE), (4, DONE)]
    keys = [[key for part in parts for key in part[2]] for parts in ranks]
    assert [each for turn in zip(*keys, strict=True) for each in turn] == whole[1]


def test_ranks_that_do_not_divide_are_refused_with_those_that_do(folder, whole):
    run_ranks(refuse, 3, folder)


def test_evaluation_gives_the_same_numbers_on_1_2_and_4_ranks(folder):
    for world in (1, 2, 4):
        run_ranks(score, world, folder)
    one, *others = (
        torch.load(folder / f"scores-world{world}-rank{rank}.pt")
        for world in (1, 2, 4)
        for rank in range(world)
    )
    assert one["val/images"] == 7  # odd: the last batches are padded
    assert all(scores == one for scores in others)

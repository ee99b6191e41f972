"""One model, one order of samples: ZeRO stages, ranks and accumulation must not matter."""

import hashlib
from pathlib import Path

import pytest
import torch

from benchmarks import memory
from llm_mde import dist
from llm_mde.errors import ConfigError
from llm_mde.model.depth_model import DepthModel
from llm_mde.scoring.losses import silog
from llm_mde.training.ds import read_ds
from llm_mde.training.engine import (
    deepspeed,
    parameter_groups,
    resolve_ds,
    start,
    trained_state,
)
from llm_mde.training.preflight import sizes
from llm_mde.training.state import make_moments
from llm_mde.training.stopping import DONE
from llm_mde.training.validate import validate
from tests.support.ranks import run_ranks
from tests.support.training import (
    LORA,
    begin,
    ds_json,
    largest_relative,
    make_shards,
    tiny_config,
    watch,
)

STAGES = (0, 1, 2, 3)
TUNED = {"full": {}, "lora": LORA}
ACCUMULATED = {"train__batch": 8, "train__max_steps": 4}
COMPILED = {"train__compile": True}
BF16 = {"bf16": {"enabled": True}}
SHIPPED = sorted(Path("launch/ds").glob("*.json"))
# Of 20 steps of `full 0`: fp32, two ranks, no ZeRO.
GOLDEN = (
    *(9.72581, 7.31612, 7.50255, 5.94139, 6.74657, 6.65334, 5.23666, 5.87469, 5.61665, 5.72971),
    *(5.66122, 5.39837, 5.26879, 5.39566, 5.27912, 5.58506, 5.77644, 5.75521, 5.16021, 4.93068),
)


def frozen_hash(engine):
    digest = hashlib.sha256()
    for name, weight in engine.module.named_parameters():
        if not weight.requires_grad:
            with deepspeed.zero.GatheredParameters([weight], enabled=hasattr(weight, "ds_id")):
                digest.update(name.encode() + weight.detach().float().numpy().tobytes())
    return digest.hexdigest()


def run_case(config, ds):
    """Scores before training (ZeRO 0), a whole run; frozen weights hashed before and after."""
    run, standing = begin(config, ds)
    before = frozen_hash(run.engine)
    first = {} if run.engine.zero_optimization_stage() else validate(run, 0)
    seen = watch(run, standing)
    after = frozen_hash(run.engine)
    buffers = {name: value.dtype for name, value in run.engine.module.named_buffers()}
    run.engine.destroy()
    return {"seen": seen, "first": first, "frozen": (before, after), "buffers": buffers}


def cases(world):
    """Name -> (settings, DeepSpeed's JSON)."""
    if world == 1:
        table = {"full 0": ({}, ds_json(0)), "compiled": (COMPILED, ds_json(2))}
        return table | {"full 3": ({}, ds_json(3))}
    table = {f"{t} {s}": (TUNED[t], ds_json(s)) for t in TUNED for s in STAGES}
    table["full 3"] = ({}, ds_json(3, whole_below=0))  # every parameter is split
    table |= {f"accumulated {s}": (ACCUMULATED, ds_json(s)) for s in (0, 3)}
    # At this rate no update is lost to the rounding of a bf16 weight.
    short = LORA | {"train__max_steps": 5, "optim__lr": 1e-3}
    table["fp32 short"] = (short, ds_json(0))
    return table | {f"bf16 {s}": (short, ds_json(s, **BF16)) for s in STAGES}


def run_cases(rank, folder):
    world = dist.world()
    runs = folder / f"world{world}"
    done = {
        name: run_case(tiny_config(folder / "shards", runs, name, **changes), ds)
        for name, (changes, ds) in cases(world).items()
    }
    if world == 1:
        config = tiny_config(folder / "shards", runs, "refused", **COMPILED)
        with pytest.raises(ConfigError, match="train.compile: expected ZeRO 0, 1 or 2, got 3"):
            begin(config, ds_json(3))
    if world == 2:
        config = tiny_config(folder / "shards", runs, "cache")
        done |= {f"cache {stage}": cache_case(config, ds_json(stage)) for stage in (2, 3)}
        done |= {path.stem: held_case(path, folder) for path in SHIPPED}
        maps = Path("/proc/self/maps").read_text().splitlines()
        done["shared"] = [line for line in maps if "deepspeed_allreduce_buffer" in line]
    torch.save(done, folder / f"world{world}-rank{rank}.pt")


def cache_case(config, ds):
    """Predictions before and after a step, and a new model's with the same weights."""
    run, _ = begin(config, ds, resume="never")
    engine = run.engine
    image = torch.arange(2 * 3 * 32 * 48).view(2, 3, 32, 48).mul(7).to(torch.uint8)
    depth = torch.full((2, 1, 32, 48), 2.0)

    def predict():
        engine.eval()
        with torch.no_grad():
            return engine(image).clone()

    before = predict()
    engine.train()
    engine.backward(silog(engine(image), depth, depth > 0))
    engine.step()
    after = predict()
    state = trained_state(engine)
    new = DepthModel(config.model, seed=config.seed).eval()
    new.load_state_dict(state, strict=False)
    with torch.no_grad():
        fresh = new(image)
    engine.destroy()
    run.tracker.close()
    return {"before": before, "after": after, "fresh": fresh, "whole": bool(state)}


def held_case(path, folder):
    """Bytes that a rank holds in two steps of the JSON as shipped, in bf16."""
    config = tiny_config(folder, folder, path.stem, **LORA, train__batch=2, train__micro_batch=1)
    ds = resolve_ds(read_ds(path), config, micro=1, world=2, cuda=True)
    model = DepthModel(config.model, seed=config.seed)
    count = sizes(model)
    whole = dict.fromkeys(count, 0)  # so small that ZeRO-3 leaves them so, beside a part
    for weight in model.parameters():
        if weight.numel() <= 100_000:
            whole[weight.requires_grad] += weight.numel()
    groups = parameter_groups(model, config.optim)
    largest = max(sum(weight.numel() for weight in group["params"]) for group in groups)
    engine = start(model, config, ds=ds)
    make_moments(engine)
    held, batch = memory.Held(engine), memory.random_batch(config, 1, seed=dist.rank())
    saved = [memory.step(engine, batch, "silog", held) for _ in range(2)]
    engine.destroy()
    return {
        "held": held.most["cpu"], "saved": saved, "sizes": count, "whole": whole, "largest": largest
    }  # fmt: skip


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """What each rank saw: ran[world][rank][case]."""
    folder: Path = tmp_path_factory.mktemp("zero")
    make_shards(folder / "shards")
    run_ranks(run_cases, 2, folder)
    run_ranks(run_cases, 1, folder)
    return {
        world: [torch.load(folder / f"world{world}-rank{rank}.pt", weights_only=False)
                for rank in range(world)]
        for world in (1, 2)
    }  # fmt: skip


def losses(case):
    return torch.tensor(case["seen"].train(), dtype=torch.float64)


def test_ranks_share_no_memory_that_would_stay_when_they_have_ended(ran):
    """DeepSpeed's op for CPUs would leave 69 MB of each rank in /dev/shm for good."""
    assert [rank["shared"] for rank in ran[2]] == [[], []]


@pytest.mark.parametrize("tune", TUNED)
@pytest.mark.parametrize("stage", STAGES[1:])
def test_stages_give_equal_fp32_losses(ran, tune, stage):
    want, got = losses(ran[2][0][f"{tune} 0"]), losses(ran[2][0][f"{tune} {stage}"])
    assert len(want) == 20
    assert want[-5:].mean() < want[:5].mean()
    assert largest_relative(got, want) < 1e-5


def test_stages_give_equal_losses_with_accumulation(ran):
    want, got = (losses(ran[2][0][f"accumulated {stage}"]) for stage in (0, 3))
    assert len(want) == 4
    assert largest_relative(got, want) < 1e-5


@pytest.mark.parametrize("stage", [0, 3])
def test_one_rank_gives_the_losses_of_two(ran, stage):
    # Accumulation 2 on one rank, 1 on each of two; dropout's masks belong to the micro-batch.
    name = f"full {stage}"
    assert largest_relative(losses(ran[1][0][name]), losses(ran[2][0][name])) < 1e-5


def test_a_compiled_network_gives_the_losses_of_one_that_is_not(ran):
    want, got = losses(ran[1][0]["full 0"]), losses(ran[1][0]["compiled"])
    assert largest_relative(got, want) < 1e-5


def test_ranks_share_out_the_samples_of_one_process(ran):
    alone = ran[1][0]["full 0"]["seen"].keys
    pairs = zip(*(ran[2][rank]["full 0"]["seen"].keys for rank in (0, 1)), strict=True)
    assert [keys for pair in pairs for keys in pair] == alone


def test_batch_norm_statistics_are_equal_on_both_ranks_after_each_step(ran):
    for name in cases(2):
        first, second = (ran[2][rank][name]["seen"].statistics for rank in (0, 1))
        for step, (mine, theirs) in enumerate(zip(first, second, strict=True)):
            assert all(map(torch.equal, mine, theirs)), (name, step)
        assert not torch.equal(first[0][0], first[1][0])


@pytest.mark.parametrize("stage", STAGES)
def test_frozen_weights_stay(ran, stage):
    for rank in (0, 1):
        before, after = ran[2][rank][f"lora {stage}"]["frozen"]
        assert before == after == ran[2][0]["lora 0"]["frozen"][0]


@pytest.mark.parametrize("tune", TUNED)
def test_trained_state_of_zero3_is_whole(ran, tune):
    want, got = (ran[2][0][f"{tune} {stage}"]["seen"].state for stage in (1, 3))
    assert list(got) == list(want)
    for name, value in want.items():
        assert (got[name].dtype, got[name].device.type) == (torch.float32, "cpu")
        torch.testing.assert_close(
            got[name], value, rtol=1e-4, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    assert not ran[2][1][f"{tune} 3"]["seen"].state


def test_evaluation_gives_the_same_numbers_on_one_rank_and_two(ran):
    want = ran[1][0]["full 0"]["first"]
    assert want["val/images"] == 7  # odd: the last batches are padded
    for rank in (0, 1):
        assert ran[2][rank]["full 0"]["first"] == pytest.approx(want, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("stage", [2, 3])
def test_evaluation_after_a_step_sees_the_new_weights(ran, stage):
    case = ran[2][0][f"cache {stage}"]
    assert case["whole"]
    assert not torch.equal(case["before"], case["after"])
    torch.testing.assert_close(case["after"], case["fresh"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_runs_near_fp32(ran, stage):
    case = ran[2][0][f"bf16 {stage}"]
    assert case["seen"].code == DONE
    want = losses(ran[2][0]["fp32 short"])
    assert largest_relative(losses(case), want) < 0.1
    # 0.003 measured: bf16 keeps 8 bits of word + position, of which image tokens are a part.
    assert largest_relative(losses(case)[:1], want[:1]) < 0.006
    statistics = {name: dtype for name, dtype in case["buffers"].items() if "running" in name}
    assert set(statistics.values()) == {torch.float32}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_what_a_rank_holds_under_each_shipped_json(ran, path):
    stage, offload = int(path.stem[4]), path.stem.endswith("offload")
    for rank in (0, 1):
        case = ran[2][rank][path.stem]
        frozen, trainable = case["sizes"][False], case["sizes"][True]
        assert case["saved"][0] == case["saved"][1] > 0
        part = trainable / (2 if stage else 1)
        want = {  # bf16 weights, fp32 masters and moments
            "frozen": 2 * frozen,
            "trainable": 2 * trainable,
            "gradients": 6 * trainable if stage < 2 else 4 * part * (2 if offload else 1),
            "masters": 4 * part,
            "moments": 8 * part,
        }
        if stage == 3:
            want["frozen"] = frozen + 2 * case["whole"][False]
            want["trainable"] = trainable + 2 * case["whole"][True]
            if not offload:  # a copy of a group's as AdamW steps it
                want["gradients"] += 4 * case["largest"] / 2
        got = {name: case["held"][name] for name in memory.PARTS}
        assert got == pytest.approx(want, rel=0.01), (rank, got)  # DeepSpeed pads


def test_losses_stay_what_they_are(ran):
    # A change here changes every run: say so in the commit. Other machines round otherwise.
    assert ran[2][0]["full 0"]["seen"].train() == pytest.approx(GOLDEN, rel=1e-3)

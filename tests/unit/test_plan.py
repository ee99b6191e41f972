from collections import Counter

import numpy as np
import pytest

from llm_mde.data.plan import Part, Plan, every_sample_once, generator
from llm_mde.errors import ConfigError

COUNTS = (7, 1, 30, 12, 19, 2, 23, 6)  # 100 samples, uneven on purpose


def plan(counts=COUNTS, *, batch=16, micro_batch=2, window=5, seed=0):
    return Plan(counts, batch=batch, micro_batch=micro_batch, window=window, seed=seed)


def epoch_samples(made, epoch):
    """Samples of an epoch in the order of positions."""
    order = made.epoch(epoch)
    return [order.sample(at) for at in range(made.batches * made.batch)]


def fixed_order(made, shards, first=0):
    """An epoch whose shards lie in a given order, for calculations by hand."""
    order = made.epoch(0)
    order.shards, order.first = np.array(shards), first
    order.starts = np.concatenate([[0], np.cumsum(np.array(made.counts)[order.shards])])
    return order


def test_order_by_hand():
    # Shards of 3, 2 and 4 samples in the order 2, 0, 1 make the line
    #   2:0 2:1 2:2 2:3 0:0 0:1 0:2 1:0 1:1
    # Two streams of four: 2:0 2:1 2:2 2:3 and 0:0 0:1 0:2 1:0; 1:1 is left out.
    made = plan((3, 2, 4), batch=2, micro_batch=1, window=1)
    order = fixed_order(made, [2, 0, 1])
    assert [order.sample(at) for at in range(8)] == [
        (2, 0), (0, 0), (2, 1), (0, 1), (2, 2), (0, 2), (2, 3), (1, 0),
    ]  # fmt: skip
    shifted = fixed_order(made, [2, 0, 1], first=1)
    assert [shifted.sample(at) for at in range(8)] == [
        (2, 1), (0, 1), (2, 2), (0, 2), (2, 3), (1, 0), (0, 0), (1, 1),
    ]  # fmt: skip
    # Batches of two: rank 0 of 2 takes the even positions, rank 1 the odd ones.
    assert list(order.micro_batches(Part(0, 2))) == [[0], [2], [4], [6]]
    assert list(order.micro_batches(Part(1, 2), start=2)) == [[5], [7]]


def test_first_positions_of_seed_0_stay_as_they_are():
    # A change here changes every run that goes on from a checkpoint: raise the checkpoint format.
    made = plan(window=2048)
    order = made.epoch(0)
    assert [order.sample(at) for at in range(20)] == [
        (0, 3), (6, 2), (6, 10), (6, 14), (6, 20), (7, 4), (2, 1), (2, 6),
        (2, 11), (2, 22), (2, 26), (4, 3), (4, 5), (4, 14), (3, 1), (3, 9),
        (0, 2), (6, 1), (6, 5), (6, 12),
    ]  # fmt: skip


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_epoch_is_a_permutation_in_full_batches(epoch):
    made = plan()
    samples = epoch_samples(made, epoch)
    assert len(samples) == made.batches * 16 == 96
    assert len(set(samples)) == len(samples)
    assert all(0 <= at < COUNTS[shard] for shard, at in samples)


@pytest.mark.parametrize("counts", [COUNTS, (100,)])
def test_left_out_samples_differ_between_epochs(counts):
    made = plan(counts)
    every = {(shard, at) for shard, count in enumerate(counts) for at in range(count)}
    left_out = [frozenset(every - set(epoch_samples(made, epoch))) for epoch in range(12)]
    assert {len(samples) for samples in left_out} == {4}
    assert len(set(left_out)) > 3
    assert not frozenset.intersection(*left_out)


def test_order_depends_on_seed_and_epoch_alone():
    assert epoch_samples(plan(), 3) == epoch_samples(plan(), 3)
    orders = [epoch_samples(plan(seed=seed), epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 3])
def test_steps_hold_the_same_samples_for_any_number_of_ranks(ranks, start):
    made = plan()
    made.check_ranks(ranks)
    order = made.epoch(1)
    shares = [list(order.micro_batches(Part(rank, ranks), start=start)) for rank in range(ranks)]
    each = made.batch // made.micro_batch // ranks  # micro-batches of a rank in a step
    assert {len(share) for share in shares} == {(made.batches - start) * each}
    for step in range(made.batches - start):
        mine = [
            at for share in shares for part in share[step * each : (step + 1) * each] for at in part
        ]
        first = (start + step) * made.batch
        assert sorted(mine) == list(range(first, first + made.batch))


def test_rank_reads_its_own_streams_front_to_back():
    made = plan(batch=8, micro_batch=2, window=1)
    order = made.epoch(2)
    places = {shard: at for at, shard in enumerate(order.shards.tolist())}
    for rank in range(2):
        read = [order.sample(at) for part in order.micro_batches(Part(rank, 2)) for at in part]
        line = [int(order.starts[places[shard]]) + at - order.first for shard, at in read]
        # A step takes one sample of each of the rank's streams, two micro-batches of two.
        mine = [stream for stream in range(8) if stream // 2 % 2 == rank]
        for at, stream in enumerate(mine):
            own = line[at::4]
            assert own == list(range(stream * made.batches, (stream + 1) * made.batches))


def test_window_permutes_no_further_than_itself():
    made = plan(window=5)
    order = made.epoch(0)
    places = {shard: at for at, shard in enumerate(order.shards.tolist())}
    for element in range(made.batches):
        shard, at = order.sample(element * made.batch + 3)
        line = int(order.starts[places[shard]]) + at - order.first - 3 * made.batches
        assert line // 5 == element // 5


@pytest.mark.parametrize(
    ("samples", "batches"), [(16, 1), (31, 1), (32, 2), (100, 6), (111, 6), (112, 7)]
)
def test_steps_of_an_epoch_are_samples_over_batch(samples, batches):
    assert plan((samples - 5, 5)).batches == batches


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"batch": 15}, "train.batch 15 is not a multiple of train.micro_batch 2"),
        ({"counts": (9, 6)}, "the split holds 15 samples, too few for a global batch of 16; "),
        ({"counts": ()}, "the split holds 0 samples"),
    ],
)
def test_plan_that_cannot_be_is_refused(settings, problem):
    with pytest.raises(ConfigError) as caught:
        plan(**settings)
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize("ranks", [3, 16])
def test_ranks_that_do_not_fit_are_refused_with_those_that_do(ranks):
    with pytest.raises(ConfigError) as caught:
        plan().check_ranks(ranks)
    assert str(caught.value) == (
        f"{ranks} ranks x micro_batch 2 do not divide the run's batch 16; "
        "possible numbers of ranks: 1, 2, 4, 8"
    )


@pytest.mark.parametrize("samples", [1, 9, 24, 25])
@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("workers", [1, 3])
def test_evaluation_reads_every_sample_once_in_equal_passes(samples, ranks, workers):
    shares = [list(every_sample_once(samples, 3, Part(rank, ranks))) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    dealt = [
        batch for share in shares for worker in range(workers) for batch in share[worker::workers]
    ]
    assert {len(batch) for batch in dealt} == {3}
    counted = Counter(at for batch in dealt for at, counts in batch if counts)
    assert counted == Counter(range(samples))
    assert all(at == samples - 1 for batch in dealt for at, counts in batch if not counts)


def test_generator_words_never_share_numbers():
    words = [(0, 1), (0, 2), (1, 1), (2, 1, 1), (2, 1, 2)]
    firsts = [generator(5, *word).integers(2**63) for word in words]
    firsts.append(generator(6, 0, 1).integers(2**63))
    assert len(set(firsts)) == 6
    assert generator(5, 0, 1).integers(2**63) == firsts[0]


def test_thousand_ranks_over_a_hundred_thousand_shards():
    counts = tuple(generator(0, 9).integers(500, 1501, 100_000).tolist())
    made = plan(counts, batch=32 * 1024, micro_batch=32, window=2048)
    made.check_ranks(1024)
    assert made.batches == sum(counts) // (32 * 1024)
    order = made.epoch(0)
    shards_read = {}
    for rank in (0, 511, 1023):
        parts = order.micro_batches(Part(rank, 1024), start=made.batches - 3)
        samples = [order.sample(at) for part in parts for at in part]
        assert len(set(samples)) == 3 * 32
        shards_read[rank] = {shard for shard, _ in samples}
    assert len(set.union(*shards_read.values())) == sum(map(len, shards_read.values()))

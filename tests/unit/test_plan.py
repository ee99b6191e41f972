import tracemalloc
from collections import Counter
from itertools import islice

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


# 1,024 ranks of 8 workers over 100,000 uneven shards and 100 million samples
RANKS, WORKERS, MICRO = 1024, 8, 32


@pytest.fixture(scope="module")
def huge():
    counts = tuple(generator(0, 9).integers(500, 1501, 100_000).tolist())
    assert 99_000_000 < sum(counts) < 101_000_000
    return plan(counts, batch=MICRO * RANKS, micro_batch=MICRO, window=2048)


def lines_of(order, samples):
    """Places of samples in the epoch's line of shards."""
    places = np.empty(len(order.shards), dtype=np.int64)
    places[order.shards] = np.arange(len(order.shards))
    shards, at = np.array(samples).T
    return order.starts[places[shards]] + at


def test_a_thousand_ranks_make_equal_steps_and_share_no_sample(huge):
    huge.check_ranks(RANKS)
    assert huge.batches == sum(huge.counts) // huge.batch
    order = huge.epoch(0)
    read = {}
    for rank in (0, 511, 1023):
        parts = list(order.micro_batches(Part(rank, RANKS), start=huge.batches - 3))
        assert len(parts) == 3
        read[rank] = lines_of(order, [order.sample(at) for part in parts for at in part])
        # A rank stays in its own 32 of the canonical streams, each a stretch of the line.
        streams = (read[rank] - order.first) // huge.batches
        assert set(streams.tolist()) == set(range(MICRO * rank, MICRO * (rank + 1)))
    together = np.concatenate(list(read.values()))
    assert len(np.unique(together)) == 3 * 3 * MICRO


def test_an_epoch_of_a_hundred_million_takes_each_sample_once_at_most(huge):
    order = huge.epoch(1)
    # All of a stream: its windows are permuted, so that all of them is all of it.
    for stream in (0, 17_000, huge.batch - 1):
        samples = [order.sample(at * huge.batch + stream) for at in range(huge.batches)]
        lines = np.sort(lines_of(order, samples)) - order.first
        first = stream * huge.batches
        assert np.array_equal(lines, np.arange(first, first + huge.batches))
    assert order.first + huge.batch * huge.batches <= sum(huge.counts)
    # A whole step, one sample of each stream.
    step = [order.sample(7 * huge.batch + at) for at in range(huge.batch)]
    assert len(set(step)) == huge.batch
    assert all(0 <= at < huge.counts[shard] for shard, at in step)


def test_a_rank_of_a_thousand_plans_in_little_memory(huge):
    tracemalloc.start()
    order = huge.epoch(3)
    for positions in islice(order.micro_batches(Part(5, RANKS)), 4 * WORKERS):
        for at in positions:
            order.sample(at)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20


def test_evaluation_on_a_thousand_ranks_reads_every_sample_once():
    samples, counted = 1_000_003, Counter()
    for rank in range(RANKS):
        batches = list(every_sample_once(samples, MICRO, Part(rank, RANKS)))
        assert len(batches) == -(-samples // (MICRO * RANKS))
        counted.update(at for batch in batches for at, counts in batch if counts)
    assert len(counted) == samples and set(counted.values()) == {1}

"""The shard plan: which sample each rank and worker reads at which moment, as a pure function.

The order of an epoch depends on (seed, epoch, G) alone, where G is the global batch. Shards are
permuted and laid end to end, the line is cut into G equal canonical streams, and samples are
permuted inside windows of each stream. Global batch g is element g of every stream: position p of
the epoch is element p div G of stream p mod G. Micro-batches go to the ranks in turn and a rank's
micro-batches to its workers in turn, so neither ranks nor workers change the samples of a step, and
a rank reads only its own streams' shards, front to back. (Canonical streams: the idea of
mosaicml-streaming's canonical nodes.)
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from llm_mde.errors import ConfigError

# Counters of the Philox generator, one per purpose, so that no two draws ever share a stream.
SHARDS, WINDOW, AUGMENT = 0, 1, 2


def generator(seed: int, *counter: int) -> np.random.Generator:
    """A counter-based generator (Philox4x64, Salmon et al. 2011): same words, same numbers."""
    words = [*counter, 0, 0, 0][:3]
    return np.random.Generator(np.random.Philox(key=[seed, 0], counter=[0, *words]))


@dataclass(frozen=True)
class Part:
    """Which share of the micro-batches is one rank's."""

    rank: int = 0
    ranks: int = 1


@dataclass(frozen=True)
class Plan:
    """The order of every epoch over shards holding `counts[i]` samples each.

    Raises:
        ConfigError: batch and micro_batch do not fit, or the split is too small.
    """

    counts: tuple[int, ...]
    batch: int
    micro_batch: int
    window: int = 2048
    seed: int = 0
    samples: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", sum(self.counts))
        if self.batch % self.micro_batch:
            raise ConfigError(
                f"train.batch {self.batch} is not a multiple of train.micro_batch "
                f"{self.micro_batch}"
            )
        if not self.batches:
            raise ConfigError(
                f"the split holds {self.samples} samples, too few for a global batch of "
                f"{self.batch}; lower train.batch or pack more scenes"
            )

    @property
    def batches(self) -> int:
        """Global batches of one epoch, and samples of one of its streams.

        The remainder is left out (other samples each epoch).
        """
        return self.samples // self.batch

    def check_ranks(self, ranks: int) -> None:
        """Refuse a number of ranks that cannot share out the micro-batches of a step.

        Raises:
            ConfigError: names the world sizes that work.
        """
        whole = self.batch // self.micro_batch
        if whole % ranks:
            fitting = ", ".join(str(n) for n in range(1, whole + 1) if whole % n == 0)
            raise ConfigError(
                f"{ranks} ranks x micro_batch {self.micro_batch} do not divide the run's batch "
                f"{self.batch}; possible numbers of ranks: {fitting}"
            )

    def epoch(self, epoch: int) -> "Epoch":
        """The order of one epoch."""
        return Epoch(self, epoch)


class Epoch:
    """Positions of one epoch to samples."""

    def __init__(self, plan: Plan, epoch: int) -> None:
        self.plan, self.number = plan, epoch
        random = generator(plan.seed, SHARDS, epoch)
        self.shards = random.permutation(len(plan.counts))  # (shards,)
        # What no stream holds is cut off both ends of the line, for one shard has no other order.
        self.first = int(random.integers(plan.samples - plan.batches * plan.batch, endpoint=True))
        self.starts = np.concatenate([[0], np.cumsum(np.asarray(plan.counts)[self.shards])])
        # One window of each stream is alive at a time; the extra ones cover the change-over.
        self._window = lru_cache(maxsize=2 * plan.batch + 8)(self._permuted)

    def _permuted(self, stream: int, window: int) -> NDArray[np.int64]:
        size = min(self.plan.window, self.plan.batches - window * self.plan.window)
        random = generator(self.plan.seed, WINDOW, self.number, stream << 32 | window)
        return random.permutation(size)

    def sample(self, position: int) -> tuple[int, int]:
        """(shard, sample inside the shard) at one position of the epoch."""
        element, stream = divmod(position, self.plan.batch)
        window, inside = divmod(element, self.plan.window)
        line = self.first + stream * self.plan.batches + window * self.plan.window
        line += int(self._window(stream, window)[inside])
        at = int(np.searchsorted(self.starts, line, side="right")) - 1
        return int(self.shards[at]), line - int(self.starts[at])

    def micro_batches(self, part: Part, *, start: int = 0) -> Iterator[list[int]]:
        """Positions of each micro-batch of one rank, from global batch `start` on."""
        micro = self.plan.micro_batch
        first = start * self.plan.batch // micro
        last = self.plan.batches * self.plan.batch // micro
        for number in range(first + part.rank, last, part.ranks):
            yield list(range(number * micro, (number + 1) * micro))


def every_sample_once(samples: int, batch: int, part: Part) -> Iterator[list[tuple[int, bool]]]:
    """Evaluation: (sample, counts) of each batch; padding repeats the last sample, not counted.

    Every rank makes the same number of forward passes, whatever the number of samples.
    """
    rounds = -(-samples // (batch * part.ranks))
    for turn in range(rounds):
        first = (turn * part.ranks + part.rank) * batch
        yield [(min(at, samples - 1), at < samples) for at in range(first, first + batch)]

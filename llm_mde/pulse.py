"""Signs of life of all ranks, kept where they met: who is it that the others wait for?"""

import logging
import socket
import threading
import time
from typing import Any, NamedTuple

logger = logging.getLogger(__name__)

PULSE_S = 2.0
NEARLY = 0.8  # of the time-out
NO_STORE = "rank 0 on %s, which keeps the list of ranks, does not answer"
GO_ON = "the same command goes on from the last checkpoint"
LATE = 2.5  # pulses, after which a rank without one shows no sign of life
GIVEN_UP = -1  # instead of beats: it has waited in vain itself


class Sign(NamedTuple):
    """What a rank last let others know."""

    beats: int
    turns: int
    """Micro-batches that it has begun."""
    host: str


def announce(store: Any, rank: int) -> None:
    """The first sign of a rank, before it beats; `store` is torch's."""
    _show(store, rank, Sign(0, 0, socket.gethostname()))


def _show(store: Any, rank: int, sign: Sign) -> None:
    store.set(f"pulse/{rank}", f"{sign.beats} {sign.turns} {sign.host}")


class Pulse:
    """The signs of one rank, and what it knows of others.

    A thread of each rank goes on while the rank waits in a collective, not where it is stopped or
    dead; `turns` tells who has come how far. Where a rank has waited nearly as long as it may, the
    thread says for whom: on GPUs NCCL ends the process without a word to Python.
    """

    def __init__(self, store: Any, *, rank: int, world: int, timeout_s: float, host: str) -> None:
        """Begins to beat; all ranks are announced. host: of rank 0, which keeps the store."""
        self.rank, self.world, self.turns, self._store = rank, world, 0, store
        self._patience_s, self._told = NEARLY * timeout_s, False
        self._no_store = NO_STORE % host
        self._over, self._blaming = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._beat, args=(store.clone(),), daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop beating; a rank that has waited in vain lets the others know that it is not why."""
        self._over.set()
        self._thread.join(2 * PULSE_S)  # not for ever, where rank 0 no longer answers
        if self._told and self.rank == 0 and self.world > 2:
            time.sleep(2 * LATE * PULSE_S)  # the end of the first ranks is what others notice

    def _beat(self, store: Any) -> None:
        beats, host = 0, socket.gethostname()
        turns, since = 0, time.monotonic()
        try:
            while not self._over.is_set():
                beats += 1
                if turns != self.turns:
                    turns, since = self.turns, time.monotonic()
                if turns and time.monotonic() - since > self._patience_s:
                    since = time.monotonic()
                    threading.Thread(target=self.blame, daemon=True).start()  # this one beats on
                _show(store, self.rank, Sign(beats, self.turns, host))
                self._over.wait(PULSE_S)
            if self._told:
                _show(store, self.rank, Sign(GIVEN_UP, self.turns, host))
        except RuntimeError:  # rank 0 keeps the store, and is gone
            return

    def blame(self) -> bool:
        """Say, once, which ranks this one waits for; whether there are any. Takes some seconds."""
        with self._blaming:
            missing = [] if self._told else self.missing()
            if missing:
                self._told = True
                who = "; ".join(missing)
                logger.error("rank %d waits in vain: %s; %s", self.rank, who, GO_ON)
        return self._told

    def missing(self) -> list[str]:
        """Ranks that show no sign of life or are behind, in words."""
        found: list[list[str]] = []
        reader = threading.Thread(target=lambda: found.append(self._missing()), daemon=True)
        reader.start()
        reader.join(2 * LATE * PULSE_S)  # a store whose host is stopped does not even time out
        return found[0] if found else [self._no_store]

    def _missing(self) -> list[str]:
        try:
            before = self._read()
            time.sleep(LATE * PULSE_S)
            after = self._read()
        except RuntimeError:
            return [self._no_store]
        most = max(sign.turns for sign in after)
        found = []
        for rank, (old, new) in enumerate(zip(before, after, strict=True)):
            if rank == self.rank or new.beats == GIVEN_UP:
                continue
            if new.beats == old.beats:
                found.append(f"rank {rank} on {new.host} shows no sign of life")
            elif new.turns < most:
                where = f"is at micro-batch {new.turns}, others at {most}"
                found.append(f"rank {rank} on {new.host} {where}")
        return found

    def _read(self) -> list[Sign]:
        """Of all ranks, in one request: they may all ask at once."""
        signs = self._store.multi_get([f"pulse/{rank}" for rank in range(self.world)])
        words = (sign.decode().split(" ", 2) for sign in signs)
        return [Sign(int(beats), int(turns), host) for beats, turns, host in words]

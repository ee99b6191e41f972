"""What asks a run to save and end: a signal, its time, the end of its launcher."""

import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llm_mde.launcher import launchers

logger = logging.getLogger(__name__)

# Exit codes: complete; other ranks are missing; saved and asks to be requeued; saved after Ctrl-C.
DONE, LOST, REQUEUE, INTERRUPTED = 0, 1, 75, 130
SIGNALS = {signal.SIGINT: INTERRUPTED, signal.SIGTERM: REQUEUE, signal.SIGUSR1: REQUEUE}

Asked = Callable[[], int | None]
"""The exit code with which to end, once something asks for it; called at every optimizer step."""


@contextmanager
def stop_requests(deadline: float | None = None) -> Iterator[Asked]:
    """Collects requests, on which nobody has to act at once.

    Ranks outlive a launcher that is killed (SIGTERM ends DeepSpeed's without a word to them); they
    would train on where nobody sees them, so its end counts as a request.

    Args:
        deadline: by `time.monotonic`, when to ask for a requeue.
    """
    codes: list[int] = []
    above = launchers()

    def asked() -> int | None:
        if not codes and deadline is not None and time.monotonic() >= deadline:
            logger.info("the time is up")
            codes.append(REQUEUE)
        if not codes and not all(one.alive() for one in above):
            logger.warning("the launcher has ended")
            codes.append(REQUEUE)
        return codes[0] if codes else None

    before = {
        number: signal.signal(number, lambda got, _: codes.append(SIGNALS[signal.Signals(got)]))
        for number in SIGNALS
    }
    try:
        yield asked
    finally:
        for number, handler in before.items():
            # Who was asked is on its way out; its exit code is what counts, not a second SIGTERM.
            on_its_way = codes and number != signal.SIGINT
            signal.signal(number, signal.SIG_IGN if on_its_way else handler)

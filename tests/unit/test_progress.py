import logging
from types import SimpleNamespace

import pytest

from llm_mde import progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0s"), (12, "12s"), (59.6, "1m00s"), (185, "3m05s"), (3720, "1h02m"), (90000, "25h00m")],
)
def test_duration_in_words(seconds, text):
    assert progress.duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("3h50m", 13800), ("90s", 90), ("1h", 3600), ("20m", 1200), ("1h02m03s", 3723), ("0s", 0)],
)
def test_words_as_seconds(text, seconds):
    assert progress.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "3", "50m3h", "1.5h", "3 h", "-1h", "soon"])
def test_other_words_are_no_duration(text):
    with pytest.raises(ValueError, match="expected a duration like 3h50m"):
        progress.seconds(text)


def test_pace_is_rate_and_time_left():
    assert progress.pace(20, 100, 10.0, "frame") == "2.0 frame/s, ETA 40s"
    assert progress.pace(0, 100, 10.0, "frame") == "0.0 frame/s, ETA unknown"


def test_lines_away_from_a_terminal_come_at_intervals_and_at_the_end(monkeypatch, caplog):
    clock = iter([0.0, 1.0, 11.0, 12.0, 13.0])
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: False)
    caplog.set_level(logging.INFO, "llm_mde.progress")
    with progress.progress("pack", "frame") as report:
        for done in (1, 22, 23, 26):
            report(done, 26)
    assert caplog.messages == [
        "pack 22/26 | 2.0 frame/s, ETA 2s",
        "pack 26/26 | 2.0 frame/s, ETA 0s",
    ]


def test_log_lines_go_to_stderr_once_and_leave_stdout_alone(capsys):
    logger = logging.getLogger("llm_mde")
    before = logger.handlers[:], logger.level, logger.propagate
    try:
        progress.log_to_stderr()
        progress.log_to_stderr()
        logging.getLogger("llm_mde.somewhere").info("step %d", 3)
    finally:
        logger.handlers[:], logger.level, logger.propagate = before
    assert capsys.readouterr() == ("", "step 3\n")

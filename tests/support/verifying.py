"""What `verify` finds in a small pack."""

from llm_mde.data import record
from llm_mde.data.verify import verify
from tests.support.shards import frame

SHARD = "train-000001.tar"  # samples 3 and 4
LAST = "office_0001-000004"


def problems(folder, **settings):
    report = verify(folder, **settings)
    assert report.found == len(report.problems)
    assert not any("\n" in line for line in report.problems)
    return list(report.problems)


def only(folder, **settings):
    found = problems(folder, **settings)
    assert len(found) == 1, found
    return found[0].replace(str(folder), "DIR")


def sample(number, scene="office_0001", **settings):
    made = record.encode(frame(number, (32, 40), scene=scene, **settings))
    return str(made.pop("__key__")), made

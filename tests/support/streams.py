"""The batches of a few small shards, as ranks and loaders get them."""

from llm_mde.config import AugmentConfig
from llm_mde.data.index import open_index
from llm_mde.data.pixels import Shape
from llm_mde.data.plan import Part, Plan
from llm_mde.data.stream import training_batches

COUNTS = [9, 2, 14, 8]  # 33 samples
SHAPE = Shape((16, 24), "bicubic", 10.0)
BATCH, MICRO = 8, 2
STEPS = 4  # of an epoch: 33 // 8


def batches_of(folder, *, part=None, augmentation=None, **settings):
    index = open_index(folder, "train")
    plan = Plan(index.counts, batch=BATCH, micro_batch=MICRO, window=3, seed=5)
    return training_batches(
        index,
        plan,
        SHAPE,
        part=part or Part(),
        augmentation=augmentation or AugmentConfig(),
        **settings,
    )

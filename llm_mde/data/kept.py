"""The disk cache that a command asks for, on each of its hosts."""

import logging

from llm_mde import dist
from llm_mde.config import DataConfig
from llm_mde.data.cache import DiskCache
from llm_mde.data.folder import ShardFolder
from llm_mde.errors import ConfigError, DataError

logger = logging.getLogger(__name__)

GB = 2**30


def disk_cache(data: DataConfig, *, dry_run: bool = False) -> DiskCache | None:
    """This host's cache for samples of a URL, if one is asked for; collective.

    dry_run: only look whether it could be used, and use none.

    Raises:
        DataError: it cannot be written.
    """
    if data.disk_cache is None or ShardFolder(data.shards or ".").local:
        return None
    cache, problem = DiskCache(data.disk_cache, limit=int(data.disk_cache_gb * GB)), None
    try:
        if dry_run:
            cache.check()
        else:
            held, bound = cache.prepare() / GB, data.disk_cache_gb
            logger.info("%s keeps samples: %.1f of %g GB", cache.folder, held, bound)
    except ConfigError as error:  # perhaps on one host alone: not what rank 0 says for all
        problem = DataError(str(error))
    dist.raise_together(problem)
    return None if dry_run else cache

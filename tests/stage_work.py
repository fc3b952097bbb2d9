"""A process of several that train the same stages together: CACHE INIT OUT {NAME: CHANGES}."""

import json
import sys
from pathlib import Path

from stage_runs import trained

from teacher_cache.reader import CacheReader

if __name__ == "__main__":
    cache, init, out, stages = sys.argv[1:]
    for name, changes in json.loads(stages).items():
        trained(CacheReader(cache), Path(init), Path(out, name), **changes)

"""For all tests. That this file is here puts `tests/` on the import path: `from tiny import …`."""

import os

from hypothesis import settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the tests comes from the network, and a test that tried would wait for it
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the forks of data loaders

# Nothing is timed in a test, and the same commit gives the same result.
settings.register_profile("ccr", deadline=None, derandomize=True)
settings.load_profile("ccr")

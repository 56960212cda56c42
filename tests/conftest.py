"""For all tests. That this file is here puts `tests/` on the import path: `from tiny import …`."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the tests comes from the network, and a test that tried would wait for it
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the forks of data loaders

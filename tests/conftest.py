"""For all tests."""

import os

import pytest
from hypothesis import settings

# nothing in the tests comes from the network, and a test that tried would wait for it
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads do not survive the forks of data loaders

# Nothing is timed in a test, and the same commit gives the same result.
settings.register_profile("ccr", deadline=None, derandomize=True)
settings.load_profile("ccr")

# Several processes take file after file in the order of collection (launch/test.sh); what takes longest must not come
# last.
LONGEST = [
    "slurm/test_survival.py",
    "slurm/test_chain.py",
    "e2e/test_demo.py",
    "e2e/test_page.py",
    "slurm/test_submission.py",
    "procs/test_resume_matrix.py",
]


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {name: n for n, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get("/".join(item.path.parts[-2:]), len(LONGEST)))

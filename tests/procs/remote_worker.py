"""Reads every row of a column of a dataset at a URL, in an order of its own, and prints JSON: what it read, and what it
fetched.

remote_worker.py URL COLUMN SEED [kill]      kill: dies by SIGKILL in the middle of its first fetch

Says "ready" and waits for a line, so that several begin together; a fetch takes long enough for others to come
meanwhile.
"""

import json
import os
import random
import signal
import sys
import time

from ccr_dist.data.storage import store
from ccr_dist.data.storage.object_store import Store
from ccr_dist.data.table.dataset import Dataset

url, name, seed = sys.argv[1:4]
fetched: list[str] = []
download = Store.download


def watched(self, name, fd, record):
    fetched.append(name)
    if "kill" in sys.argv:
        os.pwrite(fd, b"half", 0)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.05)
    download(self, name, fd, record)


Store.download = watched
column = Dataset(url).column(name)
shards = list(range(len(column.dataset.shards)))
random.Random(seed).shuffle(shards)
print("ready", flush=True)
sys.stdin.readline()
values = {
    f"{shard}/{row}": store.retry_io(lambda shard=shard, row=row: column.value(shard, row), what=f"{shard}/{row}")
    for shard in shards
    for row in range(column.dataset.shard_rows[shard])
}
print(json.dumps({"values": values, "fetched": fetched}))

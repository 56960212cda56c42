"""Exports loaded by the tools they were made for, in a process that cannot import what it must not need.

python tests/foreign.py JOBS.json        [{"form", "folder", "queries", "pictures", "lang", "task"}, ...]; prints
                                         [{"texts": rows, "pictures": rows}, ...]
JOBS.json: {"forbidden": [modules], "import": module or null, "jobs": [...]}
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any


class Guard:
    def __init__(self, names: list[str]) -> None:
        self.names = names

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition(".")[0] in self.names:
            raise ImportError(f"{name} is forbidden here")


def sentence(job: dict) -> dict:
    from PIL import Image
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(job["folder"], device="cpu", local_files_only=True)
    found = {"texts": model.encode(job["queries"], task=job["task"]).tolist()}
    if job["pictures"]:
        found["pictures"] = model.encode([Image.open(path) for path in job["pictures"]]).tolist()
    return found


def open_clip(job: dict) -> dict:
    import open_clip
    import torch
    from PIL import Image

    name = f"local-dir:{job['folder']}"
    model, _, transform = open_clip.create_model_and_transforms(name)
    model.eval()
    pixels = torch.stack([transform(Image.open(path)) for path in job["pictures"]])
    with torch.inference_mode():
        texts = model.encode_text(open_clip.get_tokenizer(name)(job["queries"]), normalize=True)
        return {"texts": texts.tolist(), "pictures": model.encode_image(pixels, normalize=True).tolist()}


def peft(job: dict) -> dict:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    folder = Path(job["folder"])
    tokenizer: Any = AutoTokenizer.from_pretrained(folder / "base")
    model = PeftModel.from_pretrained(AutoModel.from_pretrained(folder / "base"), str(folder / job["lang"])).eval()
    inputs = tokenizer(job["queries"], padding=True, truncation=True, return_tensors="pt")
    how, tensors = json.loads((folder / "pooling.json").read_text()), load_file(folder / "pooling.safetensors")
    with torch.inference_mode():
        states, mask = model(**inputs).last_hidden_state, inputs["attention_mask"]
        x = states[torch.arange(len(states)), mask.sum(1) - 1]
        if how["modes"] == ["mean"]:
            x = (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        for number, activation in enumerate(how["layers"]):
            x = torch.nn.functional.linear(x, tensors[f"{number}.weight"], tensors.get(f"{number}.bias"))
            x = getattr(torch.nn, activation)()(x)
        return {"texts": torch.nn.functional.normalize(x, dim=-1).tolist()}


def onnx(job: dict) -> dict:
    sys.path.insert(0, job["folder"])
    example: Any = importlib.import_module("example")
    found = {"texts": example.encode_texts(job["queries"], job["lang"]).tolist()}
    if job["pictures"]:
        pictures: Any = importlib.import_module("example_pictures")
        found["pictures"] = pictures.encode_pictures(job["pictures"]).tolist()
    return found


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text())
    sys.meta_path.insert(0, Guard(asked["forbidden"]))
    if asked["import"]:
        importlib.import_module(asked["import"])
    forms = {"sentence-transformers": sentence, "open_clip": open_clip, "peft": peft, "onnx": onnx}
    print(json.dumps([forms[job["form"]](job) for job in asked["jobs"]]))


if __name__ == "__main__":
    main()

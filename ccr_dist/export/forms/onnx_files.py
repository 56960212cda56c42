"""The form of ONNX: one graph for each way from texts to rows and one for pictures, tokenizer.json files, and an
example that needs nothing of ours.

    DIR/onnx.json                          languages -> graph and tokeniser; pictures -> graph and steps
    DIR/text-<lang>.onnx, tokenizer-<lang>.json     input_ids and attention_mask (batch, length) int64 ->
                                           sentence_embedding (batch, D) float32, unit length
    DIR/pictures.onnx                      pixel_values (batch, 3, H, W) -> picture_embedding (batch, D)
    DIR/example.py, example_pictures.py
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import runpy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ccr_dist.errors import ConfigError, MismatchError
from ccr_dist.export.job import Job
from ccr_dist.export.paths import TextPath
from ccr_dist.export.pictures import PicturePath
from ccr_dist.retriever.retriever import Retriever

SPEC, TEXT, PICTURES = "onnx.json", "sentence_embedding", "picture_embedding"
EXAMPLE, EXAMPLE_PICTURES = "example.py", "example_pictures.py"


def require_pictures(retriever: Retriever, path: PicturePath) -> None:
    """ConfigError where the steps to pixels are not data. What the exporter cannot trace it says itself."""
    if not path.steps:
        raise ConfigError("its pictures are prepared by a processor of transformers, whose steps are not known here")


def write(folder: Path, job: Job) -> None:
    """Fills the folder, and compares what onnxruntime computes: by the example for the rows, and with other batch sizes
    and lengths for the graphs.
    """
    spec: dict[str, Any] = {"languages": {}, "width": 0, "similarity": "dot product of rows, which have unit length"}
    paths = job.paths()
    for path in paths:
        name = path.languages[0] if len(paths) > 1 else "all"
        graph, tokenizer = folder / f"text-{name}.onnx", folder / f"tokenizer-{name}.json"
        tokenizer.write_text(path.file.json, encoding="utf-8")
        ids, mask = _encoded(path, job.texts(path.languages[0]))
        _export(graph, path.module, (ids[:2], mask[:2]), _shapes(path), ["input_ids", "attention_mask"], TEXT)
        _check_shapes(graph, path, ids, mask)
        spec["languages"] |= {lang: {"model": graph.name, "tokenizer": tokenizer.name} for lang in path.languages}
        spec["width"] = int(path.module(ids[:1], mask[:1]).shape[1])
    if job.picture is not None:
        graph = folder / "pictures.onnx"
        height, width = job.picture.size
        pixels, batch = torch.zeros(2, 3, height, width), torch.export.Dim("batch", min=1, max=4096)
        backbone, slices = job.retriever.method.backbone, job.retriever.method.backbone.slices
        backbone.slices = False  # a batch in parts would be a graph of that many parts
        _export(graph, job.picture.module, (pixels,), {"pixel_values": {0: batch}}, ["pixel_values"], PICTURES)
        backbone.slices = slices
        spec["pictures"] = {"model": graph.name, "steps": job.picture.steps}
    (folder / SPEC).write_text(json.dumps(spec, ensure_ascii=False, indent=1), encoding="utf-8")
    for name in (EXAMPLE, *([EXAMPLE_PICTURES] if job.picture else [])):
        (folder / name).write_bytes((Path(__file__).parent / name).read_bytes())
    _check(folder, job)
    lang = next((lang for lang in job.languages if lang != "en"), job.languages[0])
    job.usage += [
        "from example import encode_texts  # in DIR",
        *(["from example_pictures import encode_pictures"] if job.picture else []),
        "",
        f'rows = encode_texts([{job.texts(lang)[0]!r}], "{lang}")',
        *(['scores = rows @ encode_pictures(["a.jpg", "b.jpg"]).T'] if job.picture else []),
    ]


def _encoded(path: TextPath, texts: list[str]) -> tuple[Tensor, Tensor]:
    found = path.file.tokenizer.encode_batch(texts)
    ids, mask = [each.ids for each in found], [each.attention_mask for each in found]
    if len(ids) < 2:
        ids, mask = ids * 2, mask * 2
    return torch.tensor(ids), torch.tensor(mask)


def _shapes(path: TextPath) -> dict[str, Any]:
    batch = torch.export.Dim("batch", min=1, max=4096)
    length = torch.export.Dim("length", min=2, max=path.file.limit)
    return {name: {0: batch, 1: length} for name in ("input_ids", "attention_mask")}


def _export(
    graph: Path, module: nn.Module, inputs: tuple[Tensor, ...], shapes: Any, names: list[str], output: str
) -> None:
    with _quiet(), torch.no_grad():
        program: Any = torch.onnx.export(
            module.eval(), inputs, dynamo=True, dynamic_shapes=shapes, input_names=names, output_names=[output]
        )
        for part in (program.model.graph, *program.model.functions.values()):
            for node in part.all_nodes():
                node.metadata_props.pop("pkg.torch.onnx.stack_trace", None)  # names files of this machine
        program.save(str(graph))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter tells of its steps."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as said, \
         warnings.catch_warnings():  # fmt: skip
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        except Exception as error:
            error.add_note(said.getvalue()[-2000:])
            raise
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@torch.no_grad()
def _check_shapes(graph: Path, path: TextPath, ids: Tensor, mask: Tensor) -> None:
    """The graph with one text, with many, with the shortest and the longest length."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    longest = path.file.limit
    for rows, length in ((1, 3), (len(ids), ids.shape[1]), (3, longest)):
        more = max(0, length - ids.shape[1])
        some = torch.nn.functional.pad(ids, (0, more), value=path.file.pad)[:rows, :length].contiguous()
        seen = torch.nn.functional.pad(mask, (0, more))[:rows, :length].contiguous()
        [theirs] = session.run(None, {"input_ids": some.numpy(), "attention_mask": seen.numpy()})
        ours = path.module(some, seen).numpy()
        least = float((theirs * ours).sum(1).min())
        if theirs.shape != ours.shape or not least >= 0.9999:
            raise MismatchError(
                f"{graph.name}: with {rows} texts of {length} tokens the graph is off: cosine {least:.6f}. Nothing was"
                " written"
            )


def _check(folder: Path, job: Job) -> None:
    """The example's rows against the model's."""
    example = runpy.run_path(str(folder / EXAMPLE))
    for lang in job.languages:
        job.measured.compare(f"text.{lang}", example["encode_texts"](job.texts(lang), lang), job.rows(lang))
    if job.picture is not None:
        example = runpy.run_path(str(folder / EXAMPLE_PICTURES))
        rows = np.concatenate([example["encode_pictures"]([picture]) for picture in job.sample.pictures])
        job.measured.compare("pictures", rows, job.picture_rows())

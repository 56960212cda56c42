"""What the package offers to programs: `ccr_dist.load` and `ccr_dist.open_dataset`."""

from __future__ import annotations

from pathlib import Path

from ccr_dist.data.table.dataset import Dataset
from ccr_dist.errors import ConfigError
from ccr_dist.hub import fetch_model, names_hub
from ccr_dist.methods.run_config import load_config
from ccr_dist.retriever.load import load_model
from ccr_dist.retriever.model_folder import is_model
from ccr_dist.retriever.retriever import Retriever
from ccr_dist.train.publish import model_of, untrained_model


def load(path: str | Path, *, device: str = "auto") -> Retriever:
    """Opens a model that finds pictures and videos with sentences.

        retriever = ccr_dist.load("runs/demo/dasd-s0")
        rows = retriever.encode_text(["um limão amarelo"], lang="pt")           # (1, width) float32
        scores = retriever.similarity(rows, retriever.encode_images(["a.jpg", "b.jpg"]))  # (1, 2) float32

    Args:
        path: a model folder; a complete run folder (its model folder is made if it is missing); the YAML of a method
            that has nothing to train, such as `configs/demo/clip.yaml`; or `hf://org/name[@revision]`.
        device: `auto` (the accelerator, else the CPU), `cpu`, `cuda`, `cuda:1` ...

    Raises:
        ConfigError: there is no such model, it is not complete, or a base model cannot be loaded.
        CheckpointError: a file is missing or damaged, or a base model is another one than the model was made with.
        StorageError: the hub cannot be reached.
    """
    place = fetch_model(path) if isinstance(path, str) and names_hub(path) else Path(path)
    if place.is_dir():
        return load_model(place if is_model(place) else model_of(place), device=device)
    if place.suffix in (".yaml", ".yml") and place.is_file():
        return untrained_model(load_config(place), device=device)
    raise ConfigError(
        f"{path}: {'a file' if place.exists() else 'no such folder'}; expected the folder of a run or a model, or the"
        " config of a method that has nothing to train"
    )


def open_dataset(path: str | Path) -> Dataset:
    """Opens a dataset: a table of columns, read by shard and row.

        dataset = ccr_dist.open_dataset("data/emoji14/test")
        dataset.column("caption.pt").value(0, 0)

    Args:
        path: of its folder, or its URL in an object store.

    Raises:
        DataError: there is no dataset, or it is damaged.
    """
    return Dataset.open(path)

"""What an index is when it begins: the model, the type of its vectors, the frames of a video."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ccr_dist.data.media import pictures
from ccr_dist.data.storage import store
from ccr_dist.errors import ConfigError
from ccr_dist.search.state import FORMAT, INDEX, is_index
from ccr_dist.search.vectors import Dtype

if TYPE_CHECKING:
    from ccr_dist.retriever.retriever import Retriever


def make_empty(path: Path, retriever: Retriever, dtype: Dtype | None, frames: int | None, model: str | None) -> None:
    """Makes an empty index, unless there is one.

    Args:
        path: its folder.
        retriever: that it is made with.
        dtype, frames: as for `Index.build`; None: float32 and 8.
        model: what `ccr_dist.load` was given; None: the retriever's folder.

    Raises:
        ConfigError: the folder holds something else, or the options do not go together.
    """
    if dtype not in (None, "float32", "float16", "int8"):
        raise ConfigError(f"dtype {dtype!r}: expected float32, float16 or int8")
    if frames is not None and frames < 1:
        raise ConfigError(f"{frames} frames of a video: expected at least 1")
    if dtype not in (None, "float32") and not retriever.cosine:
        raise ConfigError(
            f"dtype {dtype}: scores of {retriever.name} have several parts, which are computed from float32 rows: leave"
            " the option out"
        )
    if is_index(path):
        return
    if path.exists() and not _is_free(path) and not is_index(path):
        raise ConfigError(f"{path}: not an index, and not empty; name a new folder with --out")
    path.mkdir(parents=True, exist_ok=True)
    about_model = {
        "name": retriever.name,
        "digest": retriever.digest,
        "path": _place(model, retriever),
        "languages": list(retriever.languages),
        "any_language": retriever.any_language,
        "cosine": retriever.cosine,
        "text_width": retriever.text_width,
        "visual_width": retriever.visual_width,
    }
    about = {"format": FORMAT, "model": about_model, "dtype": dtype or "float32", "frames": frames or 8}
    about["pictures"] = pictures.VERSION
    store.create_once(path / INDEX, store.pretty_json(store.with_digest(about)))


def _place(model: str | None, retriever: Retriever) -> str | None:
    """Where the model is loaded from when the index is searched."""
    if model is not None and "://" in model:
        return model
    place = retriever.folder or model
    return None if place is None else str(Path(place).resolve())


def _is_free(path: Path) -> bool:
    """Whether an index may be made there: others may be making it right now."""
    return path.is_dir() and all(entry.name.startswith(store.TEMPORARY) for entry in path.iterdir())

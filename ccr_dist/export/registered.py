"""A model type of transformers for text encoders that no type of its own computes: adapters between the blocks,
characteristics, NRCCR's sequence encoder.

Importing this module registers it with `AutoConfig` and `AutoModel`. The weights are those of the model folder that
lies in MODEL/, beside the files of the type or above them; routes of several languages share it.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

from ccr_dist.errors import ConfigError
from ccr_dist.export.paths import TextPath, text_paths
from ccr_dist.hub import SCHEME, fetch_model
from ccr_dist.methods.query_side.method import QuerySide
from ccr_dist.retriever.load import load_model
from ccr_dist.retriever.retriever import Retriever

MODEL = "model"  # the model folder in an export


class CcrTextConfig(PretrainedConfig):
    """Attributes:
    lang: whose way from texts to rows it is.
    hidden_size: D.
    """

    model_type = "ccr_dist_text"

    def __init__(self, lang: str = "en", hidden_size: int = 0, **more: Any) -> None:
        super().__init__(**more)
        self.lang, self.hidden_size = lang, hidden_size


class CcrTextModel(PreTrainedModel):
    """ids and attention mask (n, T) to `pooler_output`, unit rows (n, D)."""

    config_class = CcrTextConfig
    base_model_prefix = "ccr"

    def __init__(self, config: CcrTextConfig, retriever: Retriever | None = None) -> None:
        """ConfigError without a retriever: there is no such model with random weights."""
        super().__init__(config)
        if retriever is None:
            raise ConfigError("a model of type ccr_dist_text is loaded from an export, not made of a config")
        method = retriever.method
        self.net, self.backbone = method.net, method.backbone  # so that `to` moves them
        if isinstance(method, QuerySide):
            self.query = method.query
        [path] = text_paths(method, [config.lang])
        self.path: TextPath = path

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, name: Any, *rest: Any, config: Any = None, subfolder: str = "", **more: Any
    ) -> Any:
        """`name`: the export's folder or id, or the folder of one of its routes."""
        if config is None:
            config = CcrTextConfig.from_pretrained(name, subfolder=subfolder)
        return cls(config, _retriever(_model_of(str(name), more.get("revision")))).eval()

    def save_pretrained(self, place: Any, *rest: Any, **more: Any) -> None:  # type: ignore[override]
        """The config alone: weights lie in the model folder."""
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(place)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, return_dict: bool = True) -> Any:
        rows = self.path.module(input_ids, attention_mask)
        return BaseModelOutputWithPooling(last_hidden_state=rows.unsqueeze(1), pooler_output=rows)


def save(place: Path, path: TextPath, *, width: int, model: Path) -> None:
    """The files of a route: config and tokeniser, and a link to the model folder for loading from here."""
    config = CcrTextConfig(lang=path.languages[0], hidden_size=width, architectures=[CcrTextModel.__name__])
    config.save_pretrained(str(place))
    path.file.for_transformers().save_pretrained(str(place))
    (place / MODEL).symlink_to(model.resolve(), target_is_directory=True)


def _model_of(name: str, revision: str | None) -> Path:
    if not Path(name).is_dir():
        found = fetch_model(f"{SCHEME}{name}" + (f"@{revision}" if revision else ""))
        return found if found.name == MODEL else found / MODEL
    for place in (Path(name), *Path(name).resolve().parents[:2]):
        if (place / MODEL / "model.json").is_file():
            return place / MODEL
    raise ConfigError(f"{name}: there is no model folder {MODEL}/ here; copy the whole export")


@functools.lru_cache(maxsize=2)
def _loaded(folder: Path, changed: int) -> Retriever:
    return load_model(folder, device="cpu")


def _retriever(folder: Path) -> Retriever:
    place = folder.resolve()
    return _loaded(place, (place / "model.json").stat().st_mtime_ns)


AutoConfig.register(CcrTextConfig.model_type, CcrTextConfig, exist_ok=True)
AutoModel.register(CcrTextConfig, CcrTextModel, exist_ok=True)

"""Base class of the methods with a query encoder."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ccr_dist.config import ENGLISH, MethodOptions, QueryEncoderConfig
from ccr_dist.data.stream.loader import Batch
from ccr_dist.errors import ConfigError
from ccr_dist.methods.base import Method
from ccr_dist.methods.features import at_least_one, encode_visual, english, frozen, one_row, precise
from ccr_dist.methods.query_side.options import LinearMapOptions, QuerySideOptions
from ccr_dist.models.backbones.backbone import features_by_length
from ccr_dist.models.query_encoder import build_query_encoder, prompt_of


class QuerySide(Method):
    """Base class: a subclass says how the encoder's vectors get into the shared space (`mapped`).

    Attributes:
        query: The query encoder, frozen; no part of `net`.
    """

    Options: ClassVar[type[MethodOptions]] = QuerySideOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        """ConfigError when the encoder cannot be loaded, or is another one than `state` names."""
        if ENGLISH in self.languages:
            raise ConfigError(
                "data.targets: English queries go through the backbone as they are; leave 'en' out of the targets"
            )
        self.query = build_query_encoder(self.options.query)
        self._identity = self.query.feature_identity("text")
        if state is not None and state["query"] != self._identity["digest"]:
            raise ConfigError(
                f"method.query: the weights of '{self.options.query.text}' are not those that this model was trained on"
                " (another version of the package or model); install the version that its record names"
            )

    def state(self) -> dict[str, Any]:
        layers = {"layers": self._identity["layers"]} if "layers" in self._identity else {}
        return {"query": self._identity["digest"], **layers}

    def starts_from(self, source: MethodOptions) -> tuple[str, ...]:
        """ConfigError where the weights were trained on queries with another prompt."""
        theirs, own = getattr(source, "query", None), self.options.query
        if isinstance(theirs, QueryEncoderConfig) and theirs.prompt != own.prompt:
            there, here = (prompt_of(own.model_copy(update={"prompt": each.prompt})) for each in (theirs, own))
            if there != here:
                raise ConfigError(
                    f"init_from: queries began with {there!r} there, and begin with {here!r} here, so that their"
                    " vectors are others; set the same method.query.prompt"
                )
        return ()

    def query_identity(self) -> dict[str, Any] | None:
        return self._identity

    @property
    def truncated(self) -> int:
        return self.backbone.truncated + self.query.truncated

    def query_features(self, texts: Sequence[str]) -> Tensor:
        """The encoder's vectors (n, Q) of n ≥ 0 texts, float32."""
        device = next(self.net.parameters()).device
        if self.query.device != device:
            self.query.to(device)
        return precise(features_by_length(self.query, at_least_one(texts)))[: len(texts)]

    def features_of(self, batch: Batch) -> Tensor:
        """`query_features` of a batch's captions (n, Q): the cached ones where there are such."""
        if batch.query_feature is not None:
            return batch.query_feature
        return self.query_features(batch.target_text or batch.source_text)

    def aims(self, stage: str, batch: Batch) -> dict[str, Tensor]:
        """What a stage draws captions towards, without gradient: english (n, D) and visual (n, D), if it reads them."""
        needs, result = self.options.training_stages()[stage].needs, {}
        if "source_feature" in needs:
            result["english"] = frozen(lambda: english(self.backbone, batch))
        if "visual" in needs:
            visual = batch.visual
            assert visual is not None
            result["visual"] = frozen(lambda: encode_visual(self.backbone, visual))
        return result

    @abstractmethod
    def mapped(self, features: Tensor, lang: str) -> dict[str, Tensor]:
        """The encoder's vectors (n, Q) of n ≥ 0 queries to {"global": (n, D)}."""

    def encode_text(self, texts: Sequence[str], lang: str, companion: Sequence[str] = ()) -> dict[str, Tensor]:
        """English: the backbone, untouched, unless the options say otherwise. Any other language: `mapped`."""
        if lang == ENGLISH and self.options.english == "backbone":
            return super().encode_text(texts, lang)
        return self.mapped(self.query_features(texts), lang)


class LinearMap(QuerySide):
    """Base of the methods with a linear map; their `net` holds it as "map", and it starts at zero."""

    Options: ClassVar[type[MethodOptions]] = LinearMapOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        super().build(texts, state)
        with torch.no_grad():
            space = self.backbone.text_features if self.options.space == "features" else self.backbone.encode_text
            width = space([""]).shape[-1]
        self.net["map"] = nn.Linear(self.query.dim, width)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)

    @property
    def map(self) -> nn.Linear:
        """The linear map (Q) to (F), or to (D) where it ends in the shared space."""
        layer = self.net["map"]
        assert isinstance(layer, nn.Linear)
        return layer

    def mapped(self, features: Tensor, lang: str) -> dict[str, Tensor]:
        return {"global": self.into_shared_space(self.map(one_row(features)))[: features.shape[0]]}

    def into_shared_space(self, found: Tensor) -> Tensor:
        """What the map gives, (n, F) or (n, D), to (n, D), n ≥ 1."""
        return self.backbone.project_text(found) if self.options.space == "features" else found

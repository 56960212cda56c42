"""Method `fusion`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ccr_dist.config import ENGLISH
from ccr_dist.errors import ConfigError
from ccr_dist.evaluate import retrieval
from ccr_dist.methods import registry
from ccr_dist.methods.base import Method
from ccr_dist.methods.fusion.options import FusionOptions
from ccr_dist.methods.registry import register_method


@register_method("fusion")
class Fusion(Method):
    Options = FusionOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        """The method `of`, whose parameters keep their names. Raises ConfigError as that method does."""
        of = self.options.of
        self.inner = registry.method(of.name)(of, self.backbone, self.languages, texts=texts, state=state)
        self.net = self.inner.net

    def state(self) -> dict[str, Any]:
        return self.inner.state()

    def trainable(self, stage: str) -> list[str]:
        """Of the method `of`: what its stages have trained."""
        return self.inner.trainable(stage)

    @property
    def truncated(self) -> int:
        return self.inner.truncated

    def image_transform(self) -> Callable[..., Tensor]:
        return self.inner.image_transform()

    # Encoding.

    @property
    def text_parts(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.inner.text_parts, *map(translated, self.inner.text_parts))

    @property
    def visual_parts(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.inner.visual_parts

    def encode_visual(
        self, visual: Tensor, mask: Tensor | None = None, description: Sequence[str] = ()
    ) -> dict[str, Tensor]:
        return self.inner.encode_visual(visual, mask, description)

    def encode_text(self, texts: Sequence[str], lang: str, companion: Sequence[str] = ()) -> dict[str, Tensor]:
        """The parts of the inner method of `texts` and, as `translated` names them, of `companion`, asked in English;
        of English texts, their own once more. ConfigError without a translation for each.
        """
        parts = self.inner.text_parts
        if lang != ENGLISH and len(companion) != len(texts):
            raise ConfigError(
                f"method fusion averages the scores of a query and of its English translation: {len(companion)}"
                f" translations for {len(texts)} queries in '{lang}'"
            )
        found = self.inner.encode_text(texts, lang, companion)
        english = found if lang == ENGLISH else self.inner.encode_text(companion, ENGLISH)
        return {**{part: found[part] for part in parts}, **{translated(part): english[part] for part in parts}}

    # Scoring.

    def scores(self, text: Mapping[str, Tensor], visual: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The inner method's parts of the query, and of its translation."""
        parts = self.inner.text_parts
        own = self.inner.scores({part: text[part] for part in parts}, visual)
        english = self.inner.scores({part: text[translated(part)] for part in parts}, visual)
        return {**own, **{translated(part): score for part, score in english.items()}}

    def fusions(self) -> list[retrieval.Fusion]:
        return [_averaged(inner, weight) for inner in self.inner.fusions() for weight in self.options.weights]


def translated(part: str) -> str:
    """The name of a part of texts or scores, of the translation."""
    return "translation" if part == "global" else f"translation {part}"


def _averaged(inner: retrieval.Fusion, weight: float) -> retrieval.Fusion:
    own = {part: round((1 - weight) * share, 6) for part, share in inner.weights.items()}
    english = {translated(part): round(weight * share, 6) for part, share in inner.weights.items()}
    return retrieval.Fusion({**own, **english}, minmax=inner.minmax)

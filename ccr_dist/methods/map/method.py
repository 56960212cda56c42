"""Method `map`."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ccr_dist.errors import ConfigError
from ccr_dist.methods.features import encode_visual, gram, one_row, precise
from ccr_dist.methods.map.options import MapOptions
from ccr_dist.methods.query_side.method import LinearMap
from ccr_dist.methods.registry import register_method


@register_method("map")
class Map(LinearMap):
    """`net` holds "map", and with `centre: language` "bias": what is added to the map's bias, by language."""

    Options = MapOptions
    recomputes = False

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        super().build(texts, state)
        if self.options.centre == "language":
            width = self.map.out_features
            self.net["bias"] = nn.ParameterDict({_own(lang): torch.zeros(width) for lang in self.languages})

    def mapped(self, features: Tensor, lang: str) -> dict[str, Tensor]:
        found, own = self.map(one_row(features)), self._own_bias()
        whole = self.into_shared_space(found + own[_own(lang)] if _own(lang) in own else found)
        return {"global": whole[: features.shape[0]]}

    def parts(self, lang: str) -> tuple[Tensor, Tensor]:
        """Weight (F or D, Q) and bias (F or D) of the map of a language."""
        own, bias = self._own_bias(), self.map.bias
        return self.map.weight, bias + own[_own(lang)] if _own(lang) in own else bias

    def _own_bias(self) -> nn.ParameterDict:
        """(F) by `_own(lang)`, beside the map's own bias; none unless each language has its own mean."""
        if "bias" not in self.net:
            return nn.ParameterDict()
        own = self.net["bias"]
        assert isinstance(own, nn.ParameterDict)
        return own

    def statistics(self, stage: str, lang: str, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Products and sums of the rows x and their targets: y, the English features, and p, the pictures."""
        x = rows["query"].double()
        english = rows["english"]
        if self.options.space == "shared":
            english = self._unit(self.backbone.project_text(english))
        targets = {"y": english}
        if "visual" in rows:
            targets["p"] = self._unit(encode_visual(self.backbone, rows["visual"]))
        sums = {"xx": gram(x), f"n/{lang}": torch.tensor(float(len(x)), dtype=torch.float64), f"x/{lang}": x.sum(0)}
        for name, target in targets.items():
            target = target.double()
            sums |= {f"x{name}": x.T @ target, f"{name}/{lang}": target.sum(0)}
        return sums

    def _unit(self, rows: Tensor) -> Tensor:
        return normalize(precise(rows), dim=-1)

    def solutions(self, stage: str, sums: Mapping[str, Tensor]) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
        options = self.options
        for pictures in options.pictures:
            moments = _moments(sums, pictures, by_language=options.centre == "language")
            for penalty, rank in itertools.product(options.penalties, options.ranks):
                weight = _ridge(moments, penalty, rank, whiten=options.whiten)
                label = {"penalty": penalty, "rank": rank, "pictures": pictures if any(options.pictures) else None}
                yield {k: v for k, v in label.items() if v is not None}, self._weights(moments, weight)

    def _weights(self, moments: _Moments, weight: Tensor) -> dict[str, Tensor]:
        """Parameters by name for the map `weight` (Q, F)."""

        def bias(means: tuple[Tensor, Tensor]) -> Tensor:
            return means[1] - means[0] @ weight

        found = {"net.map.weight": weight.T, "net.map.bias": bias(moments.means)}
        for lang in self.languages if self._own_bias() else ():
            found[f"net.bias.{_own(lang)}"] = bias(moments.by_language[lang]) - found["net.map.bias"]
        return {name: tensor.float() for name, tensor in found.items()}


def _own(lang: str) -> str:
    """The name of a language's parameter: some tags, such as "to", are names of modules' attributes."""
    return f"lang-{lang}"


class _Moments(NamedTuple):
    """Second moments about the means, per row.

    Attributes:
        values: (Q,) eigenvalues of the covariance of x, ascending.
        vectors: (Q, Q) its eigenvectors, in columns.
        cross: (Q, F) covariance of x and the target.
        means: of x and of the target, over all rows.
        by_language: the same of each language.
        rows: number of rows.
    """

    values: Tensor
    vectors: Tensor
    cross: Tensor
    means: tuple[Tensor, Tensor]
    by_language: dict[str, tuple[Tensor, Tensor]]
    rows: int


def _moments(sums: Mapping[str, Tensor], pictures: float, *, by_language: bool) -> _Moments:
    """pictures: weight of p in the target. by_language: about the means of each language, not of all."""
    counts = {name.removeprefix("n/"): float(n) for name, n in sums.items() if name.startswith("n/") and n > 0}
    rows = sum(counts.values())
    if not rows:
        raise ConfigError("there is no caption with query feature and English feature to fit the map on")

    def target(kind: str) -> Tensor:
        own = (1 - pictures) * sums[kind.format("y")]
        return own + pictures * sums[kind.format("p")] if pictures else own

    x = {lang: sums[f"x/{lang}"] for lang in counts}
    y = {lang: target(f"{{}}/{lang}") for lang in counts}
    means = torch.stack([*x.values()]).sum(0) / rows, torch.stack([*y.values()]).sum(0) / rows
    own = {lang: (x[lang] / n, y[lang] / n) for lang, n in counts.items()}
    groups = [(n, own[lang]) for lang, n in counts.items()] if by_language else [(rows, means)]
    covariance, cross = sums["xx"].clone(), target("x{}").clone()
    for n, (of_x, of_y) in groups:
        covariance -= n * torch.outer(of_x, of_x)
        cross -= n * torch.outer(of_x, of_y)
    values, vectors = torch.linalg.eigh(covariance / rows)
    return _Moments(values.clamp(min=0), vectors, cross / rows, means, own, int(rows))


def _ridge(moments: _Moments, penalty: float, rank: int | None, *, whiten: bool) -> Tensor:
    """The map (Q, F). Raises ConfigError for a singular system."""
    values, vectors = moments.values, moments.vectors
    spanned = values > values.max() * 1e-10
    if (whiten or not penalty) and not bool(spanned.all()):
        there = int(spanned.sum())
        raise ConfigError(
            f"method.penalties: the query features of {moments.rows} captions span {there} of {len(values)} directions,"
            f" so {'`whiten: true`' if whiten else 'a penalty of 0'} has no solution; set a penalty above 0"
            f"{' and `whiten: false`' if whiten else ''}, or fit on more captions"
        )
    scaled = values * (1 + penalty) if whiten else values + penalty * values.mean()
    weight = vectors @ ((vectors.T @ moments.cross) / scaled[:, None])
    if rank is None or rank >= min(weight.shape):
        return weight
    # reduced-rank regression: the directions of the target that the full map predicts best
    root = (vectors.T @ weight) * scaled.sqrt()[:, None]
    _, _, directions = torch.linalg.svd(root, full_matrices=False)
    kept = directions[:rank]
    return weight @ kept.T @ kept

"""Method `dynamic`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from ccr_dist.config import MethodOptions
from ccr_dist.errors import ConfigError
from ccr_dist.methods.dynamic.options import DynamicOptions
from ccr_dist.methods.features import one_row
from ccr_dist.methods.query_side.aligned import Aligned, evened
from ccr_dist.methods.query_side.method import LinearMap
from ccr_dist.methods.registry import register_method


class Residual(nn.Module):
    """U(V x * tanh(G x)), zero at the start; without G: U(V x).

    Args:
        inputs: width of x.
        rank: of V and G.
        outputs: width of the result.
        generated: with G.
    """

    def __init__(self, inputs: int, rank: int, outputs: int, *, generated: bool) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, rank, bias=False)
        self.generator = nn.Linear(inputs, rank) if generated else None
        self.up = nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(n, inputs) to (n, outputs)."""
        core = self.down(x)
        if self.generator is not None:
            core = core * self.generator(x).tanh()
        found: Tensor = self.up(core)
        return found


@register_method("dynamic")
class Dynamic(Aligned, LinearMap):
    """`net` holds "map" and "residual"."""

    Options = DynamicOptions

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        super().build(texts, state)
        self.net["residual"] = Residual(
            self.query.dim, self.options.rank, self.map.out_features, generated=self.options.generated
        )

    def starts_from(self, source: MethodOptions) -> tuple[str, ...]:
        """From another `dynamic`, or from a `map`, whose residual then begins at zero."""
        super().starts_from(source)
        wanted = {"space": self.options.space} | ({"centre": "all"} if source.name == "map" else {})
        there = {key: getattr(source, key, None) for key in wanted}
        if source.name not in ("map", self.name) or there != wanted:
            said = ", ".join(f"{key}: {value}" for key, value in wanted.items())
            raise ConfigError(
                f"init_from: a {self.name} starts from a run of `map` or `{self.name}` with `{said}`, and that is a"
                f" `{source.name}` with `{', '.join(f'{key}: {value}' for key, value in there.items())}`"
            )
        return ("net.residual.",) if source.name == "map" else ()

    def mapped(self, features: Tensor, lang: str) -> dict[str, Tensor]:
        x = one_row(features)
        found = self.map(x) + self.net["residual"](evened(x))
        return {"global": self.into_shared_space(found)[: len(features)]}

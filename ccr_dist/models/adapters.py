"""Adapters: small trained maps that sit after each block of a frozen text tower, `(layer, h, lang, core) -> h`.

`AdapterBank` holds one adapter a layer and language, of any kind; `Bottleneck` is MLA's (Zhang et al. 2022), `Core`
DASD's (Cai et al., AAAI 2025), and `CoreGenerator` makes what DASD's need: one core a layer and caption. What captions
are described by is in `methods/dasd/characteristics.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Start = Literal["identity", "default"]
Map = Callable[[Tensor], Tensor]


class Bottleneck(nn.Module):
    """h + Up(ReLU(Down(h))). Without use for a core.

    `start` "identity": Up begins at zero, so that training begins at the frozen tower; "default": PyTorch's, as
    published.
    """

    def __init__(self, width: int, hidden: int, start: Start) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        if start == "identity":
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def forward(self, h: Tensor, core: Map | None = None) -> Tensor:
        """(…, width) to the same."""
        return h + self.up(torch.relu(self.down(h)))


class Core(Bottleneck):
    """h + Up(ReLU(Down(h) G)): G (r, r) is generated for each caption, or is one learned matrix."""

    def __init__(self, width: int, rank: int, start: Start, *, learned: bool) -> None:
        super().__init__(width, rank, start)
        self.core = nn.Parameter(torch.eye(rank)) if learned else None

    def forward(self, h: Tensor, core: Map | None = None) -> Tensor:
        """h (…, width) to the same; `core` maps (…, r) to (…, r G), each position by its caption's G. A learned one
        ignores it.
        """
        down = self.down(h)
        if self.core is not None:
            return h + self.up(torch.relu(down @ self.core))
        assert core is not None, "a generated core is missing"
        return h + self.up(torch.relu(core(down)))


class AdapterBank(nn.Module):
    """One adapter a layer and language. `bank(layer, h, lang, core)`."""

    def __init__(self, layers: int, languages: Iterable[str], make: Callable[[], nn.Module]) -> None:
        super().__init__()
        # The prefix keeps languages apart from attributes of modules: "to" is Tongan.
        self.languages = nn.ModuleDict(
            {f"lang-{lang}": nn.ModuleList(make() for _ in range(layers)) for lang in languages}
        )

    def forward(self, layer: int, h: Tensor, lang: str, core: Map | None = None) -> Tensor:
        adapters = self.languages[f"lang-{lang}"]
        assert isinstance(adapters, nn.ModuleList)
        return adapters[layer](h, core)


class CoreGenerator(nn.Module):
    """Characteristics of a caption to one core (r, r) a layer; shared by all languages.

    z = QuickGELU(W_z f), G_l = W_l z + b_l. Only the cores are generated: whole Down and Up would need 32 times as many
    weights. `start` "identity": W_l begins at zero and b_l at the unit matrix; "default": PyTorch's, as published.
    """

    def __init__(self, inputs: int, hidden: int, rank: int, layers: int, start: Start) -> None:
        super().__init__()
        self.rank = rank
        self.code = nn.Linear(inputs, hidden)
        self.cores = nn.ModuleList(nn.Linear(hidden, rank * rank) for _ in range(layers))
        if start == "identity":
            for layer in self.cores:
                assert isinstance(layer, nn.Linear)
                nn.init.zeros_(layer.weight)
                layer.bias.data.copy_(torch.eye(rank).flatten())

    def forward(self, characteristics: Sequence[Tensor]) -> list[Tensor]:
        """Vectors (n, w_1), (n, w_2), … that make up `inputs` together, to `layers` tensors (n, r, r)."""
        return self.from_code(self.to_code(characteristics))

    def to_code(self, characteristics: Sequence[Tensor]) -> Tensor:
        """W_z f (n, hidden), before QuickGELU."""
        return self.code(torch.cat(list(characteristics), dim=-1))

    def from_code(self, code: Tensor) -> list[Tensor]:
        """The cores of `to_code`'s result."""
        code = code * torch.sigmoid(1.702 * code)
        return [layer(code).unflatten(-1, (self.rank, self.rank)) for layer in self.cores]

"""Method `kernel`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ccr_dist.errors import ConfigError
from ccr_dist.methods.features import encode_visual, gram, one_row, precise
from ccr_dist.methods.kernel.options import KernelOptions
from ccr_dist.methods.query_side.method import QuerySide
from ccr_dist.methods.registry import register_method

_JITTER = 1e-9  # of the landmarks' own kernel, whose least eigenvalues are rounding errors


@register_method("kernel")
class Kernel(QuerySide):
    """A query is centred, made a unit vector, and compared with m landmarks.

    `net` holds "centre" (Q), "landmarks" (m, Q) unit vectors, "coefficients" (m, D), "bias" (D) and "gamma" (1), what
    squared distances are multiplied by. Where fewer captions than m were drawn, the last landmarks and coefficients are
    zero.
    """

    Options = KernelOptions
    recomputes = False

    def build(self, texts: Iterable[str] | None, state: Mapping[str, Any] | None) -> None:
        super().build(texts, state)
        shapes = {
            "centre": (self.query.dim,),
            "landmarks": (self.options.landmarks, self.query.dim),
            "coefficients": (self.options.landmarks, self.backbone.dim),
            "bias": (self.backbone.dim,),
            "gamma": (1,),
        }
        self.net["kernel"] = nn.ParameterDict({name: nn.Parameter(torch.zeros(s)) for name, s in shapes.items()})
        self._drawn = self.options.landmarks

    @property
    def _parts(self) -> Any:
        return self.net["kernel"]

    def mapped(self, features: Tensor, lang: str) -> dict[str, Tensor]:
        rows, device = one_row(features), features.device.type
        half = torch.is_autocast_enabled(device)
        # Terms of a sum cancel far below what bf16 keeps.
        with torch.autocast(device, enabled=False) if half else contextlib.nullcontext():
            found = self._kernel(rows) @ self._parts["coefficients"] + self._parts["bias"]
        return {"global": found[: features.shape[0]]}

    def _kernel(self, features: Tensor) -> Tensor:
        """(n, Q) query features to (n, m)."""
        parts = self._parts
        return self._compared(normalize(precise(features) - parts["centre"], dim=-1), parts["landmarks"])

    def _compared(self, unit: Tensor, landmarks: Tensor) -> Tensor:
        return torch.exp(-2 * self._parts["gamma"] * (1 - unit @ landmarks.T))

    def drawn(self, stage: str) -> int:
        landmarks: int = self.options.landmarks
        return landmarks

    def begin(self, stage: str, query: Tensor) -> None:
        if len(query) < 2:
            raise ConfigError("there are not two captions with query feature and English feature to fit the map on")
        parts = self._parts
        centre = query.double().mean(0).to(query.dtype)
        unit = normalize(query - centre, dim=-1)
        apart = 2 - 2 * unit.double().mean(0).square().sum()  # the mean squared distance of two of them
        self._drawn = len(query)
        for name, value in (("centre", centre), ("gamma", (self.options.gamma / apart).reshape(1))):
            parts[name].copy_(value)
        parts["landmarks"].zero_()
        parts["landmarks"][: self._drawn] = unit

    def statistics(self, stage: str, lang: str, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Products and sums of the kernel's rows k and their targets: y, the English captions, and p, the pictures."""
        k = self._kernel(rows["query"])[:, : self._drawn].double()
        targets = {"y": self.backbone.project_text(rows["english"])}
        if "visual" in rows:
            targets["p"] = encode_visual(self.backbone, rows["visual"])
        sums = {"kk": gram(k), "k": k.sum(0), "n": torch.full((1,), float(len(k)), dtype=torch.float64)}
        for name, found in targets.items():
            target = normalize(precise(found), dim=-1).double()
            sums |= {f"k{name}": k.T @ target, name: target.sum(0)}
        return sums

    def solutions(self, stage: str, sums: Mapping[str, Tensor]) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
        """By the Cholesky factor L of the landmarks' own kernel: (L⁻¹ K'K L⁻ᵀ + penalty) is far from singular."""
        landmarks = self._parts["landmarks"][: self._drawn].detach().double().cpu()
        own = torch.exp(-2 * self._parts["gamma"].detach().double().cpu() * (1 - landmarks @ landmarks.T))
        own.diagonal().add_(_JITTER * len(own))
        factor = torch.linalg.cholesky(own)
        half = torch.linalg.solve_triangular(factor, sums["kk"], upper=False)
        whole = torch.linalg.solve_triangular(factor, half.T.contiguous(), upper=False)
        count = sums["n"]
        for penalty in self.options.penalties:
            system = whole.clone()
            system.diagonal().add_(penalty)
            solver = torch.linalg.cholesky(system)
            for pictures in self.options.pictures:
                cross, total = ((1 - pictures) * sums[key] for key in ("ky", "y"))
                if pictures:
                    cross, total = cross + pictures * sums["kp"], total + pictures * sums["p"]
                bias = total / count
                right = torch.linalg.solve_triangular(factor, cross - torch.outer(sums["k"], bias), upper=False)
                found = torch.linalg.solve_triangular(factor.T, torch.cholesky_solve(right, solver), upper=True)
                coefficients = torch.zeros(self.options.landmarks, found.shape[1])
                coefficients[: self._drawn] = found.float()
                yield (
                    {"penalty": penalty, "pictures": pictures},
                    {"net.kernel.coefficients": coefficients, "net.kernel.bias": bias.float()},
                )

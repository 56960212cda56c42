"""Method `kernel`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from ccr_dist.errors import ConfigError
from ccr_dist.methods.features import encode_visual, gram, one_row, precise
from ccr_dist.methods.kernel.options import KernelOptions
from ccr_dist.methods.query_side.method import QuerySide
from ccr_dist.methods.registry import register_method

_TEXTS = "texts/"
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
        """Products and sums of the kernel's rows k and their targets: y, the English captions, and p, the pictures.

        Rows without a picture are summed up apart, under names that begin with "texts/".
        """
        k = self._kernel(rows["query"])[:, : self._drawn].double()
        targets = {"y": self.backbone.project_text(rows["english"])}
        if "visual" in rows:
            targets["p"] = encode_visual(self.backbone, rows["visual"])
        sums = {"kk": gram(k), "k": k.sum(0), "n": torch.full((1,), float(len(k)), dtype=torch.float64)}
        for name, found in targets.items():
            target = normalize(precise(found), dim=-1).double()
            sums |= {f"k{name}": k.T @ target, name: target.sum(0)}
        apart = any(self.options.pictures) and "visual" not in rows
        return {f"{_TEXTS}{name}": tensor for name, tensor in sums.items()} if apart else sums

    def solutions(self, stage: str, sums: Mapping[str, Tensor]) -> Iterator[tuple[dict[str, Any], dict[str, Tensor]]]:
        """By the Cholesky factor L of the landmarks' own kernel: (L⁻¹ K'K L⁻ᵀ + penalty) is far from singular.

        A solution is linear in its target. So where some rows have no picture, English captions are fitted on all rows
        and pictures on those that have one, and the two solutions are mixed.
        """
        landmarks = self._parts["landmarks"][: self._drawn].detach().double().cpu()
        own = torch.exp(-2 * self._parts["gamma"].detach().double().cpu() * (1 - landmarks @ landmarks.T))
        own.diagonal().add_(_JITTER * len(own))
        factor = torch.linalg.cholesky(own)
        pictured, texts = (
            {name.removeprefix(_TEXTS): tensor for name, tensor in sums.items() if name.startswith(_TEXTS) is apart}
            for apart in (False, True)
        )
        if texts and not pictured:
            raise ConfigError("data.train: no caption has a picture; set method.pictures to [0], or name such datasets")
        pairs = _System(factor, pictured)
        every = _System(factor, {name: tensor + pictured[name] for name, tensor in texts.items()}) if texts else None
        for penalty in self.options.penalties:
            solve = pairs.solver(penalty)
            solve_every = every.solver(penalty) if every else None
            for pictures in self.options.pictures:
                if every is None or solve_every is None:
                    found, bias = solve(*pairs.mixed(pictures))
                else:
                    found, bias = (
                        (1 - pictures) * english + pictures * picture
                        for english, picture in zip(solve_every(*every.mixed(0)), solve(*pairs.mixed(1)), strict=True)
                    )
                coefficients = torch.zeros(self.options.landmarks, found.shape[1])
                coefficients[: self._drawn] = found.float()
                yield (
                    {"penalty": penalty, "pictures": pictures},
                    {"net.kernel.coefficients": coefficients, "net.kernel.bias": bias.float()},
                )


class _System:
    """The normal equations of some rows.

    Args:
        factor: (m, m) the Cholesky factor of the landmarks' own kernel.
        sums: `statistics` of these rows.
    """

    def __init__(self, factor: Tensor, sums: Mapping[str, Tensor]) -> None:
        self._factor, self._sums = factor, sums
        half = torch.linalg.solve_triangular(factor, sums["kk"], upper=False)
        self._whole = torch.linalg.solve_triangular(factor, half.T.contiguous(), upper=False)

    def mixed(self, pictures: float) -> tuple[Tensor, Tensor]:
        """Products (m, D) and sum (D) of a target with this weight of the pictures."""
        cross, total = ((1 - pictures) * self._sums[key] for key in ("ky", "y"))
        if pictures:
            cross, total = cross + pictures * self._sums["kp"], total + pictures * self._sums["p"]
        return cross, total

    def solver(self, penalty: float) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """A function from products and sum of a target to coefficients (m, D) and bias (D)."""
        system = self._whole.clone()
        system.diagonal().add_(penalty)
        root = torch.linalg.cholesky(system)

        def solve(cross: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
            bias = total / self._sums["n"]
            right = torch.linalg.solve_triangular(self._factor, cross - torch.outer(self._sums["k"], bias), upper=False)
            return torch.linalg.solve_triangular(self._factor.T, torch.cholesky_solve(right, root), upper=True), bias

        return solve

"""A whole run, of all sections."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import Field, SerializeAsAny

from ccr_dist.config.backbones import BackboneConfig
from ccr_dist.config.base import Frozen
from ccr_dist.config.data import DataConfig
from ccr_dist.config.methods import MethodOptions
from ccr_dist.config.runtime import RuntimeConfig
from ccr_dist.config.stages import AnyStage


class RunConfig(Frozen):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="letters, digits, dots, dashes")
    label: str | None = Field(None, description="row name in reports; default: the method's name")
    out: str = Field("runs", description="the run folder is OUT/NAME-sSEED")
    seed: int = Field(0, ge=0, description="of every random choice of the run")
    backbone: SerializeAsAny[BackboneConfig] = Field(description="the pretrained model, by `kind`")
    method: SerializeAsAny[MethodOptions] = Field(description="`name` and the options of the method")
    data: DataConfig = Field(description="datasets and columns")
    stages: dict[str, AnyStage] = Field(
        default_factory=dict, description="each stage of the method, by its name (`ccr-dist methods`)"
    )
    init_from: str | None = Field(
        None, description="folder of a run or model whose trained weights this run starts from"
    )
    select: str = Field("mR", description="validation metric, mean over the target languages")
    runtime: RuntimeConfig = Field(default_factory=RuntimeConfig, description="how the run is carried out")

    @property
    def folder(self) -> Path:
        return Path(self.out) / f"{self.name}-s{self.seed}"

    @property
    def row(self) -> str:
        """Name of this run's row in reports."""
        return self.label or self.method.name


def as_dict(config: RunConfig) -> dict[str, Any]:
    """The resolved config as plain values, ready for YAML or JSON."""
    return config.model_dump(mode="json")

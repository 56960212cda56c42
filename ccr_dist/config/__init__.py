"""What a run is: typed, frozen, strict. Reading the file (with `base:` and overrides) is `yamlfile.py`; nothing here
imports torch.

A run config is data only. A method brings its own options (`MethodOptions` subclasses in `ccr_dist/methods/`), found by
name.
"""

from ccr_dist.config.backbones import BackboneConfig, DualConfig, FrontEndConfig, OpenClipConfig, SentenceConfig
from ccr_dist.config.base import Frozen
from ccr_dist.config.data import DataConfig, TrainSet
from ccr_dist.config.methods import ENGLISH, INPUTS, MethodOptions, Stage
from ccr_dist.config.run import RunConfig, as_dict
from ccr_dist.config.runtime import ProfileConfig, RuntimeConfig
from ccr_dist.config.stages import StageConfig

__all__ = [
    "ENGLISH",
    "INPUTS",
    "BackboneConfig",
    "DataConfig",
    "DualConfig",
    "FrontEndConfig",
    "Frozen",
    "MethodOptions",
    "OpenClipConfig",
    "ProfileConfig",
    "RunConfig",
    "RuntimeConfig",
    "SentenceConfig",
    "Stage",
    "StageConfig",
    "TrainSet",
    "as_dict",
]

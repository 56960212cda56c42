"""What a run is: typed, frozen, strict. Reading the file (with `base:` and overrides) is `yamlfile.py`; nothing here
imports torch.

A run config is data only. A method brings its own options (`MethodOptions` subclasses in `ccr_dist/methods/`), found by
name, and a kind of backbone its own section (`BackboneConfig` subclasses in `ccr_dist/models/backbones/`).
"""

from ccr_dist.config.backbones import BackboneConfig, FrontEndConfig, Prompt, QueryEncoderConfig
from ccr_dist.config.base import Frozen
from ccr_dist.config.base_files import MayBeLocal, base_files, with_base_files
from ccr_dist.config.data import DataConfig, TextSet, TrainSet
from ccr_dist.config.methods import ENGLISH, INPUTS, MethodOptions, Stage
from ccr_dist.config.run import RunConfig, as_dict
from ccr_dist.config.runtime import ProfileConfig, RuntimeConfig
from ccr_dist.config.stages import FitConfig, StageConfig

__all__ = [
    "ENGLISH",
    "INPUTS",
    "BackboneConfig",
    "DataConfig",
    "FitConfig",
    "FrontEndConfig",
    "Frozen",
    "MayBeLocal",
    "MethodOptions",
    "ProfileConfig",
    "Prompt",
    "QueryEncoderConfig",
    "RunConfig",
    "RuntimeConfig",
    "Stage",
    "StageConfig",
    "TextSet",
    "TrainSet",
    "as_dict",
    "base_files",
    "with_base_files",
]

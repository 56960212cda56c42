"""Chooses the strategy: by the launch profile, through the environment that `accelerate launch` sets, or by
`--strategy`.

Both must agree. Nothing else in a profile is used: settings that have no effect here are errors.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ccr_dist import resources
from ccr_dist.errors import ConfigError
from ccr_dist.train.strategies.base import Engine
from ccr_dist.train.strategies.zero import OURS

NAMES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
# allowed keys of zero_optimization; others change numbers (quantisation) or layouts that checkpoints must know
ZERO = frozenset(
    {
        "stage", "reduce_bucket_size", "allgather_bucket_size", "reduce_scatter", "overlap_comm",
        "contiguous_gradients", "sub_group_size",
        "offload_optimizer", "offload_param", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold",
        "stage3_max_live_parameters", "stage3_max_reuse_distance",
    }
)  # fmt: skip
BESIDE = frozenset({"zero_optimization", "steps_per_print", "wall_clock_breakdown", "comms_logger", "flops_profiler"})
NEUTRAL = frozenset({"", "none", "auto"})  # values without effect
# What a launch profile must not set, the value that is allowed ("": none), and what decides it here.
PLAIN = {
    "ACCELERATE_MIXED_PRECISION": ("no", "runtime.precision of the run config says it"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "nothing is compiled"),
    "ACCELERATE_USE_MEGATRON_LM": ("false", "it is no strategy here"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("false", "all processes are data parallel"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("1", "runtime.micro_batch of the run config says it"),
    "ACCELERATE_GRADIENT_CLIPPING": ("", "clip_norm of the stage says it"),
}
IN_JSON = "the DeepSpeed config file says it"
DEEPSPEED = {
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": ("", IN_JSON),
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": ("", IN_JSON),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("", IN_JSON),
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": ("false", "models are built whole"),
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": ("false", "checkpoints have one layout"),
}
WRAPPED = "ccr_dist/train/strategies/fsdp2.py decides it"
FSDP = {
    # transformers reads it, and would leave the weights of all ranks but 0 uninitialised for accelerate to fill
    "FSDP_CPU_RAM_EFFICIENT_LOADING": (
        "false",
        "it is `true` unless a profile says fsdp_cpu_ram_efficient_loading: false",
    ),
    "FSDP_OFFLOAD_PARAMS": ("false", "use zero3_offload.yaml"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", "runtime.gradient_checkpointing of the run config says it"),
    "FSDP_RESHARD_AFTER_FORWARD": ("true", WRAPPED),
    "FSDP_AUTO_WRAP_POLICY": ("", WRAPPED),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": ("", WRAPPED),
    "FSDP_IGNORED_MODULES": ("", WRAPPED),
    "FSDP_STATE_DICT_TYPE": ("", "runtime.checkpoint of the run config says it"),
}


def requested(name: str | None) -> tuple[str | None, dict[str, Any]]:
    """The strategy that `--strategy` and the launch profile ask for.

    Args:
        name: The value of `--strategy`, or None.

    Returns:
        Name of the strategy, None if neither names one; and the profile's DeepSpeed config.

    Raises:
        ConfigError: The two differ, or the profile has settings without effect.
    """
    profile, options = _profile()
    if name is not None and name not in NAMES:
        raise ConfigError(f"--strategy {name}: expected one of {', '.join(NAMES)}")
    if name is not None and profile is not None and name != profile:
        other = resources.shown(f"launch/accelerate/{name}.yaml")
        raise ConfigError(f"--strategy {name} was asked for, but the launch profile starts {profile}; use {other}")
    return name or profile, options


def _profile() -> tuple[str | None, dict[str, Any]]:
    fsdp, deepspeed = _on("ACCELERATE_USE_FSDP"), _on("ACCELERATE_USE_DEEPSPEED")
    wrong = _without_effect(PLAIN | (FSDP if fsdp else {}) | (DEEPSPEED if deepspeed else {}))
    if torch.cuda.is_available() and _on("ACCELERATE_USE_CPU"):
        wrong.append(
            "the launch profile asks for the CPU, but GPUs are seen and would be used: hide them with"
            " CUDA_VISIBLE_DEVICES="
        )
    version = os.environ.get("FSDP_VERSION", "1")
    if fsdp and version != "2":
        wrong.append(
            f"the launch profile asks for FSDP {version}; this trains with FSDP 2: see"
            f" {resources.shown('launch/accelerate/fsdp2.yaml')}"
        )
    options: dict[str, Any] = {}
    if deepspeed:
        try:
            options = deepspeed_config(os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"))
        except ConfigError as error:
            wrong.append(str(error))
    if wrong:
        raise ConfigError("\n  ".join(wrong))
    return ("fsdp2" if fsdp else f"zero{options['zero_optimization']['stage']}" if deepspeed else None), options


def _on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1", "yes", "y", "t", "on")


def _without_effect(table: Mapping[str, tuple[str, str]]) -> list[str]:
    """One line on all variables of a launch profile that have no effect here, or none."""
    found = [
        f"{variable}={os.environ[variable]} ({why})"
        for variable, (expected, why) in table.items()
        if os.environ.get(variable, expected).lower() not in NEUTRAL | {expected}
    ]
    if not found:
        return []
    return [
        f"the launch profile or command sets what has no effect here: {'; '.join(found)}. Leave it out, or start from a"
        f" profile of {resources.LAUNCH.folder}"
    ]


def deepspeed_config(path: str | None) -> dict[str, Any]:
    """Read the profile's DeepSpeed config, which must not set anything that the run config decides.

    Args:
        path: The file, or the name of a shipped one.

    Returns:
        The config without values that have no effect ("auto", "none").

    Raises:
        ConfigError: The file is missing or wrong; names it and all keys that cannot be used.
    """
    if path in (None, "", "none"):
        example = resources.shown("launch/accelerate/zero2.yaml")
        raise ConfigError(f"the launch profile uses DeepSpeed without a deepspeed_config_file: see {example}")
    file = resources.DEEPSPEED.find(str(path))
    if not file.exists():
        names = ", ".join(resources.DEEPSPEED.files())
        raise ConfigError(
            f"{file}: the launch profile's DeepSpeed config is not there, seen from {Path.cwd()}. Start in the folder"
            " that the profile's path counts from, give it whole in the profile, or name one that comes with ccr-dist:"
            f" {names}"
        )
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: no DeepSpeed config: {error}") from None
    if not isinstance(given, dict) or not isinstance(given.get("zero_optimization", {}), dict):
        raise ConfigError(f"{file}: no DeepSpeed config: expected a JSON object with the object zero_optimization")
    options = {key: value for key, value in given.items() if key == "zero_optimization" or not _neutral(value)}
    zero = {key: value for key, value in options.get("zero_optimization", {}).items() if not _neutral(value)}
    wrong = [f"{key} is set by the run config ({OURS[key]}); leave it out here" for key in options if key in OURS]
    for where, found, known in (("", options.keys() - OURS.keys(), BESIDE), ("zero_optimization.", zero.keys(), ZERO)):
        if unknown := sorted(found - known):
            names = ", ".join(f"{where}{key}" for key in unknown)
            wrong.append(f"{names} cannot be used here; expected only {', '.join(sorted(known))}")
    if zero.get("stage") not in (1, 2, 3) or isinstance(zero["stage"], bool):
        wrong.append(
            f"zero_optimization.stage is {zero.get('stage')!r}: expected 1, 2 or 3; for plain data parallelism use"
            " ddp.yaml"
        )
    for key in ("offload_optimizer", "offload_param"):
        place = zero.get(key, {})
        device = place.get("device", "cpu") if isinstance(place, dict) else place
        if device != "cpu":
            wrong.append(f"zero_optimization.{key}.device is {device!r}: expected 'cpu', or no {key}")
    if wrong:
        raise ConfigError(f"{file}: " + f"\n  {file}: ".join(wrong))
    return {**options, "zero_optimization": zero}


def _neutral(value: Any) -> bool:
    """Whether a value, or an object with a device or a switch, has no effect."""
    if isinstance(value, dict):
        return any(key in value and (value[key] is False or _neutral(value[key])) for key in ("device", "enabled"))
    return value is None or (isinstance(value, str) and value.lower() in NEUTRAL)


def engine_of(name: str) -> type[Engine]:
    """The engine class of a strategy ("single" for one process)."""
    if name == "fsdp2":
        from ccr_dist.train.strategies.fsdp2 import Fsdp2

        return Fsdp2
    if name.startswith("zero"):
        from ccr_dist.train.strategies import zero

        return {"zero1": zero.Zero1, "zero2": zero.Zero2, "zero3": zero.Zero3}[name]
    from ccr_dist.train.strategies import replicated

    return {"single": replicated.Single, "ddp": replicated.Ddp}[name]

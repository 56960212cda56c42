"""Which strategy runs: the launch profile says it by what `accelerate launch` puts into the environment, `--strategy` by name.

Both must agree. Nothing else of a profile is read: where it says what has no effect here, that is an error.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...errors import ConfigError
from .base import Engine
from .zero import OURS

NAMES = ("ddp", "zero1", "zero2", "zero3", "fsdp2")
ZERO = frozenset(  # keys of zero_optimization; the others change numbers (quantisation) or layouts that checkpoints must know
    {
        "stage", "reduce_bucket_size", "allgather_bucket_size", "reduce_scatter", "overlap_comm", "contiguous_gradients", "sub_group_size",
        "offload_optimizer", "offload_param", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold",
        "stage3_max_live_parameters", "stage3_max_reuse_distance",
    }
)  # fmt: skip
BESIDE = frozenset({"zero_optimization", "steps_per_print", "wall_clock_breakdown", "comms_logger", "flops_profiler"})
# What `accelerate launch` sets without being asked, and who says it here; "" stands for a variable that it does not set.
PLAIN = {
    "ACCELERATE_MIXED_PRECISION": ("no", "runtime.precision of the run config says it"),
    "ACCELERATE_DYNAMO_BACKEND": ("no", "nothing is compiled"),
    "ACCELERATE_USE_MEGATRON_LM": ("", "it is no strategy here"),
    "ACCELERATE_USE_PARALLELISM_CONFIG": ("", "all processes are data parallel"),
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": ("", "runtime.micro_batch of the run config says it"),
    "ACCELERATE_GRADIENT_CLIPPING": ("", "clip_norm of the stage says it"),
}
IN_JSON = "the DeepSpeed config file says it"
DEEPSPEED = {
    "ACCELERATE_DEEPSPEED_ZERO_STAGE": ("", IN_JSON),
    "ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": ("", IN_JSON),
    "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": ("", IN_JSON),
    "ACCELERATE_DEEPSPEED_ZERO3_INIT": ("", "models are built whole"),
    "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": ("", "checkpoints have one layout"),
}
WRAPPED = "ccr_dist/train/strategies/fsdp2.py decides it"
FSDP = {
    # transformers reads it: the weights of all ranks but 0 would be left as they happen to be, for accelerate to fill
    "FSDP_CPU_RAM_EFFICIENT_LOADING": ("false", "it is `true` unless a profile says fsdp_cpu_ram_efficient_loading: false"),
    "FSDP_OFFLOAD_PARAMS": ("false", "use zero3_offload.yaml"),
    "FSDP_ACTIVATION_CHECKPOINTING": ("false", "runtime.gradient_checkpointing of the run config says it"),
    "FSDP_RESHARD_AFTER_FORWARD": ("true", WRAPPED),
    "FSDP_AUTO_WRAP_POLICY": ("", WRAPPED),
    "FSDP_TRANSFORMER_CLS_TO_WRAP": ("", WRAPPED),
    "FSDP_IGNORED_MODULES": ("", WRAPPED),
    "FSDP_STATE_DICT_TYPE": ("", "runtime.checkpoint of the run config says it"),
}


def requested(name: str | None) -> tuple[str | None, dict[str, Any]]:
    """The strategy's name, None for the plain one, and the DeepSpeed config of the profile. ConfigError where the two differ."""
    profile, options = _profile()
    if name is not None and name not in NAMES:
        raise ConfigError(f"--strategy {name}: expected one of {', '.join(NAMES)}")
    if name is not None and profile is not None and name != profile:
        raise ConfigError(f"--strategy {name} was asked for, but the launch profile starts {profile}; use launch/accelerate/{name}.yaml")
    return name or profile, options


def _profile() -> tuple[str | None, dict[str, Any]]:
    _refuse(PLAIN)
    if torch.cuda.is_available() and _on("ACCELERATE_USE_CPU"):
        raise ConfigError("the launch profile asks for the CPU, but GPUs are seen and would be used: hide them with CUDA_VISIBLE_DEVICES=")
    if _on("ACCELERATE_USE_FSDP"):
        version = os.environ.get("FSDP_VERSION", "1")
        if version != "2":
            raise ConfigError(f"the launch profile asks for FSDP {version}; this trains with FSDP 2: see launch/accelerate/fsdp2.yaml")
        _refuse(FSDP)
        return "fsdp2", {}
    if _on("ACCELERATE_USE_DEEPSPEED"):
        _refuse(DEEPSPEED)
        options = deepspeed_config(os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE"))
        return f"zero{options['zero_optimization']['stage']}", options
    return None, {}


def _on(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("true", "1", "yes", "y", "t", "on")


def _refuse(table: Mapping[str, tuple[str, str]]) -> None:
    for variable, (expected, why) in table.items():
        value = os.environ.get(variable, expected)
        if value.lower() != expected:
            raise ConfigError(
                f"the launch profile or command sets {variable}={value}, which has no effect here: {why}. Leave it out, or start from a "
                "profile of launch/accelerate"
            )


def deepspeed_config(path: str | None) -> dict[str, Any]:
    """A DeepSpeed config that leaves to the run config what is the run config's. ConfigError naming file and key."""
    if path in (None, "", "none"):
        raise ConfigError("the launch profile uses DeepSpeed without a deepspeed_config_file: see launch/accelerate/zero2.yaml")
    file = Path(str(path))
    if not file.exists():
        raise ConfigError(
            f"{file}: the launch profile's DeepSpeed config is not there, seen from {Path.cwd()}. Start in the folder that the profile's "
            "path counts from (of the profiles here: the one that holds launch/), or give it whole in the profile"
        )
    try:
        options = json.loads(file.read_text(encoding="utf-8"))
        zero = dict(options.get("zero_optimization", {}))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigError(f"{file}: no DeepSpeed config: {error}") from None
    for key in options:
        if key in OURS:
            raise ConfigError(f"{file}: {key} is the run config's affair ({OURS[key]}); leave it out here")
    for where, given, known in (("", options, BESIDE), ("zero_optimization.", zero, ZERO)):
        unknown = sorted(given.keys() - known)
        if unknown:
            raise ConfigError(f"{file}: {where}{unknown[0]} cannot be used here; expected only {', '.join(sorted(known))}")
    if zero.get("stage") not in (1, 2, 3):
        raise ConfigError(
            f"{file}: zero_optimization.stage is {zero.get('stage')!r}: expected 1, 2 or 3; for plain data parallelism use ddp.yaml"
        )
    for key in ("offload_optimizer", "offload_param"):
        device = zero.get(key, {}).get("device", "cpu")
        if device != "cpu":
            raise ConfigError(f"{file}: zero_optimization.{key}.device is {device!r}: expected 'cpu', or no {key}")
    return options


def engine_of(name: str) -> type[Engine]:
    if name == "fsdp2":
        from .fsdp2 import Fsdp2

        return Fsdp2
    if name.startswith("zero"):
        from . import zero

        return {"zero1": zero.Zero1, "zero2": zero.Zero2, "zero3": zero.Zero3}[name]
    from . import replicated

    return {"single": replicated.Single, "ddp": replicated.Ddp}[name]

"""Which strategy a launch profile starts, and what of it is refused because it would do nothing here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ccr_dist.errors import ConfigError
from ccr_dist.train.processes import STARTERS, Processes
from ccr_dist.train.strategies.choose import DEEPSPEED, FSDP, deepspeed_config, requested

LAUNCH = Path(__file__).parents[4] / "launch"
# what accelerate launch always sets
ACCELERATED = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}
FSDP2 = {
    **ACCELERATED,
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_OFFLOAD_PARAMS": "false",
    "FSDP_ACTIVATION_CHECKPOINTING": "false",
}


def zero(file: Path | str) -> dict[str, str]:
    return {**ACCELERATED, "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_CONFIG_FILE": str(file)}


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    others = (
        "ACCELERATE_USE_FSDP",
        "ACCELERATE_USE_DEEPSPEED",
        "ACCELERATE_USE_CPU",
        "WORLD_SIZE",
        "RANK",
        "LOCAL_WORLD_SIZE",
        *STARTERS,
    )
    for name in (*others, *ACCELERATED, *FSDP, *DEEPSPEED):
        monkeypatch.delenv(name, raising=False)


def choose(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str | None = None) -> str | None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    return requested(name)[0]


@pytest.mark.parametrize("stage", [1, 2, 3])
@pytest.mark.parametrize("suffix", ["", "_offload"])
def test_deepspeed_profiles(monkeypatch: pytest.MonkeyPatch, stage: int, suffix: str) -> None:
    file = LAUNCH / "deepspeed" / f"zero{stage}{suffix}.json"
    if file.exists():
        assert choose(monkeypatch, zero(file)) == f"zero{stage}"
        assert requested(f"zero{stage}")[0] == f"zero{stage}"
        assert bool(requested(None)[1]["zero_optimization"].get("offload_param")) == bool(suffix)


def test_other_profiles(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(monkeypatch, {}) is None
    assert choose(monkeypatch, ACCELERATED) is None
    assert requested("ddp")[0] == "ddp" and requested("zero2")[0] == "zero2"
    assert choose(monkeypatch, FSDP2) == "fsdp2"


def test_every_profile_starts_what_its_name_says() -> None:
    """The keys that `accelerate launch` reads, and none that it does not know."""
    from accelerate.commands.config.config_args import load_config_from_file

    files = sorted((LAUNCH / "accelerate").glob("*.yaml"))
    assert {file.stem for file in files} == {"cpu", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2"}
    for file in files:
        profile = load_config_from_file(str(file))  # raises on unknown keys
        kind = {"z": "DEEPSPEED", "f": "FSDP"}.get(file.stem[0], "MULTI_GPU")
        assert (profile.distributed_type.value, profile.mixed_precision) == (kind, "no"), file
        assert profile.num_processes == (2 if file.stem == "cpu" else -1), (
            "-1: accelerate wants --num_processes, and says so"
        )
        assert (profile.main_process_port, profile.num_machines, profile.same_network) == (0, 1, True)
        if kind == "DEEPSPEED":
            assert (
                profile.deepspeed_config["deepspeed_config_file"] == file.stem
                and deepspeed_config(file.stem)["zero_optimization"]
            )
            assert profile.deepspeed_config["deepspeed_multinode_launcher"] == "standard"
        if kind == "FSDP":
            assert profile.fsdp_config == {"fsdp_version": 2, "fsdp_cpu_ram_efficient_loading": False}
        assert "use_cpu" not in yaml.safe_load(file.read_text())


@pytest.mark.parametrize(
    ("variables", "name", "message"),
    [
        ({}, "zero4", "expected one of ddp, zero1"),
        (FSDP2, "ddp", "the launch profile starts fsdp2"),
        (zero(LAUNCH / "deepspeed" / "zero2.json"), "zero3", "the launch profile starts zero2"),
        ({**FSDP2, "FSDP_VERSION": "1"}, None, "asks for FSDP 1"),
        ({"ACCELERATE_USE_FSDP": "1"}, None, "asks for FSDP 1"),
        (
            {**FSDP2, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"},
            None,
            "LOADING=true.*fsdp_cpu_ram_efficient_loading: false",
        ),
        ({**FSDP2, "FSDP_OFFLOAD_PARAMS": "true"}, None, "FSDP_OFFLOAD_PARAMS=true.*zero3_offload"),
        ({**FSDP2, "FSDP_ACTIVATION_CHECKPOINTING": "true"}, None, "runtime.gradient_checkpointing"),
        ({**FSDP2, "FSDP_TRANSFORMER_CLS_TO_WRAP": "Block"}, None, "FSDP_TRANSFORMER_CLS_TO_WRAP=Block"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, None, "runtime.precision"),
        ({"ACCELERATE_DYNAMO_BACKEND": "INDUCTOR"}, None, "DYNAMO_BACKEND=INDUCTOR"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, None, "MEGATRON"),
        ({"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, None, "data parallel"),
        ({**zero(""), "ACCELERATE_DEEPSPEED_CONFIG_FILE": "none"}, None, "without a deepspeed_config_file"),
        (
            {**zero(LAUNCH / "deepspeed" / "zero2.json"), "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            None,
            "ZERO_STAGE=3.*config file says it",
        ),
        (
            {**zero(LAUNCH / "deepspeed" / "zero2.json"), "ACCELERATE_GRADIENT_CLIPPING": "1.0"},
            None,
            "clip_norm of the stage",
        ),
        (zero("nowhere.json"), None, "nowhere.json"),
    ],
)
def test_what_would_silently_be_something_else_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(monkeypatch, variables, name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train_batch_size": 64}, r"train_batch_size is set by the run config \(stages\.\*\.batch\)"),
        ({"gradient_clipping": 1.0}, r"stages\.\*\.clip_norm"),
        ({"bf16": {"enabled": True}}, r"runtime\.precision"),
        ({"optimizer": {"type": "AdamW"}}, r"stages\.\*\.optimizer"),
        ({"prescale_gradients": True}, "prescale_gradients cannot be used here"),
        ({"zero_optimization": {"stage": 0}}, "stage is 0: expected 1, 2 or 3"),
        ({"zero_optimization": {}}, "stage is None"),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket": 5}},
            r"\.reduce_bucket cannot be used here.*reduce_bucket_size",
        ),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "zero_quantized_weights"),
        (
            {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}},
            "offload_param.device is 'nvme': expected 'cpu'",
        ),
        ([1, 2], "no DeepSpeed config"),
        ({"zero_optimization": 3}, "no DeepSpeed config"),
    ],
)
def test_a_deepspeed_config_says_nothing_but_zero(tmp_path: Path, options: Any, message: str) -> None:
    if isinstance(options, dict) and "zero_optimization" not in options:
        options = {"zero_optimization": {"stage": 2}, **options}
    file = tmp_path / "zero.json"
    file.write_text(json.dumps(options))
    with pytest.raises(ConfigError, match=rf"zero\.json.*{message}"):
        deepspeed_config(str(file))


def test_a_profile_used_from_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"zero2\.json: .*seen from {tmp_path}.*Start in the folder"):
        deepspeed_config("launch/deepspeed/zero2.json")


def test_processes_without_a_gpu_each_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(ConfigError, match=r"3 processes run on a machine that shows 2 GPU\(s\)"):
        Processes(threads=1, world=None, group=False, timeout=1)
    with pytest.raises(ConfigError, match="--world 4 was asked for, but 3"):
        Processes(threads=1, world=4, group=False, timeout=1)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(ConfigError, match="hide them with CUDA_VISIBLE_DEVICES="):
        requested(None)


@pytest.mark.long
def test_a_refused_profile_ends_with_exit_code_2(tmp_path: Path) -> None:
    from tests import toy

    command = [sys.executable, "-m", "ccr_dist", "train", str(toy.dasd(tmp_path)), "--strategy", "zero2"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(LAUNCH.parent), "HF_HUB_OFFLINE": "1", **FSDP2}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 2 and "the launch profile starts fsdp2" in done.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": ""}, "WORLD_SIZE='' in the environment.*unset it"),
        ({"WORLD_SIZE": "two", "RANK": ""}, "WORLD_SIZE='two', RANK='' in the environment"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 in the environment"),
        ({"WORLD_SIZE": "-2"}, "WORLD_SIZE='-2' in the environment"),
        (
            {"WORLD_SIZE": "2"},
            "WORLD_SIZE=2 is in the environment without RANK, MASTER_ADDR, MASTER_PORT.*unset WORLD_SIZE",
        ),
        (
            {"WORLD_SIZE": "2", "RANK": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
            "RANK=2 with WORLD_SIZE=2: ranks are 0 to 1",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun started 4 processes.*each would train the whole run"),
        ({"PMI_SIZE": "4"}, "mpirun started 4 processes"),
        ({"SLURM_STEP_NUM_TASKS": "8"}, "srun started 8 processes.*ccr-dist submit"),
    ],
)
def test_processes_without_a_launcher_are_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], message: str
) -> None:
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=message) as error:
        Processes(threads=1, world=None, group=False, timeout=60)
    assert "\n" not in str(error.value)


def test_one_process_of_mpirun_or_srun_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in STARTERS:
        monkeypatch.setenv(variable, "1")
    assert Processes(threads=1, world=1, group=False, timeout=60).world == 1


def test_all_that_a_profile_asks_for_in_vain_is_told_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    offload = {"offload_param": {"device": "nvme"}, "reduce_bucket": 5, "zero_quantized_weights": True}
    file.write_text(
        json.dumps(
            {"fp16": {"enabled": True}, "optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": 5, **offload}}
        )
    )
    with pytest.raises(ConfigError) as error:
        choose(monkeypatch, {**zero(file), "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_GRADIENT_CLIPPING": "1.0"})
    told = (
        "MIXED_PRECISION=bf16",
        "GRADIENT_CLIPPING=1.0",
        "fp16 is",
        "optimizer is",
        "reduce_bucket,",
        "zero_quantized_weights",
        "nvme",
    )
    assert [word for word in (*told, "stage is 5") if word not in str(error.value)] == []


def test_what_asks_for_nothing_is_accepted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As Hugging Face's examples, and `accelerate config`, write them."""
    file = tmp_path / "auto.json"
    asked = {
        "train_batch_size": "auto",
        "gradient_clipping": "auto",
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": False, "loss_scale": 0},
        "zero_optimization": {
            "stage": 3, "offload_param": {"device": "none"}, "offload_optimizer": {"device": "none"},
            "overlap_comm": True,
            "reduce_bucket_size": "auto", "stage3_prefetch_bucket_size": "auto",
        },
    }  # fmt: skip
    file.write_text(json.dumps(asked))
    profile = {
        "ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "none",
        "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
        "ACCELERATE_GRADIENT_CLIPPING": "auto",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
    }
    assert choose(monkeypatch, {**zero(file), **profile}) == "zero3"
    assert requested(None)[1] == {"zero_optimization": {"stage": 3, "overlap_comm": True}}

"""The sections of a site profile for Kubernetes and for SkyPilot. Typed YAML."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from ccr_dist.cluster.elsewhere.words import (
    Absolute,
    Device,
    DnsLabel,
    DnsName,
    LabelValue,
    Line,
    Qualified,
    Quantity,
    Variable,
    below,
)
from ccr_dist.config import Frozen

SHARED_MEMORY = "/dev/shm"


class Volume(Frozen):
    """A persistent volume claim, and where it is mounted."""

    claim: DnsName = Field(description="name of the PersistentVolumeClaim; several pods must be able to mount it")
    mount: Absolute = Field(description="folder in the container")
    read_only: bool = Field(False, description="whether it is mounted for reading only")


class Toleration(Frozen):
    """A taint of nodes on which pods may run nevertheless, as in a pod's specification."""

    key: Qualified = Field(description="key of the taint")
    operator: Literal["Exists", "Equal"] = Field("Exists", description="whether the taint must have this value")
    value: LabelValue | None = Field(None, description="of the taint, for Equal")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(None, description="default: any")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if (self.operator == "Equal") != (self.value is not None):
            raise ValueError("a value belongs to `operator: Equal`, and to no other")
        return self


class Kubernetes(Frozen):
    """What `ccr-dist submit --to kubernetes` needs to know of a cluster."""

    image: Line = Field(min_length=1, description="container image with ccr_dist; `python` of the profile is in it")
    folder: Absolute = Field(
        description="working folder of every command, on one of the volumes: paths in commands start there"
    )
    volumes: tuple[Volume, ...] = Field(min_length=1, description="shared storage of all pods")
    namespace: DnsLabel | None = Field(None, description="default: that of kubectl's context")
    queue: LabelValue | None = Field(None, description="local queue of Kueue, which then decides when a job starts")
    gpu: Device | None = Field(
        None, description="name of the GPU resource, such as nvidia.com/gpu; required if a step has GPUs"
    )
    resources: dict[Qualified, Quantity | int] = Field(
        default_factory=dict,
        description="further resources of a pod of a step on several nodes, such as rdma/hca: 1",
    )
    shared_memory: Quantity | None = Field(
        "16Gi", description="limit of /dev/shm, which data loaders use; it counts as memory; null: the cluster's"
    )
    node_selector: dict[Qualified, LabelValue] = Field(default_factory=dict, description="labels that nodes must have")
    tolerations: tuple[Toleration, ...] = Field((), description="taints on which pods may run nevertheless")
    service_account: DnsName | None = Field(None, description="default: none, and no token in the pod")
    priority: DnsName | None = Field(None, description="priority class of the pods")
    secrets: tuple[DnsName, ...] = Field(
        (), description="names of Secrets whose entries become environment variables, such as tokens"
    )
    pull_secrets: tuple[DnsName, ...] = Field((), description="names of the Secrets with which the image is pulled")
    port: int = Field(29500, gt=1023, lt=65536, description="port on which the nodes of a training meet")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        mounts = [volume.mount for volume in self.volumes]
        all_mounts = [*mounts, *([SHARED_MEMORY] if self.shared_memory else [])]
        if twice := [mount for mount in mounts if all_mounts.count(mount) > 1]:
            raise ValueError(f"volumes: {twice[0]} is mounted twice")
        if not below(self.folder, [volume.mount for volume in self.volumes if not volume.read_only]):
            raise ValueError(
                f"folder: {self.folder} is on none of the volumes that can be written ({', '.join(mounts)}): what is"
                " made there would end with its pod"
            )
        return self


class SkyPilot(Frozen):
    """What `ccr-dist submit --to skypilot` needs to know."""

    folder: Absolute = Field(
        description="working folder of every command, on storage that all nodes share: paths in commands start there"
    )
    volumes: dict[Absolute, Line] = Field(
        default_factory=dict, description="mounted SkyPilot volumes: folder on the nodes: name of the volume"
    )
    mounts: dict[Absolute, Line] = Field(
        default_factory=dict, description="`file_mounts`: folder on the nodes: local path, or URL of a bucket"
    )
    workdir: Line | None = Field(None, description="local folder that is copied to the nodes, such as . for `setup`")
    setup: tuple[Line, ...] = Field((), description="shell lines that install ccr_dist on a fresh node")
    infra: Line | None = Field(None, description="where to run, such as aws, gcp/us-central1, k8s; default: cheapest")
    accelerator: Line | None = Field(
        None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="GPU's name in SkyPilot, such as H100"
    )
    image: Line | None = Field(None, description="`image_id`, such as docker:nvcr.io/nvidia/pytorch:25.01-py3")
    use_spot: bool = Field(False, description="whether to take spot instances: managed jobs recover from their loss")
    disk_gib: int | None = Field(None, gt=0, description="disk of each node")
    secrets: tuple[Variable, ...] = Field(
        (), description="names of environment variables that are given with --secret at launch, such as HF_TOKEN"
    )
    port: int = Field(29500, gt=1023, lt=65536, description="port on which the nodes of a training meet")

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if both := self.volumes.keys() & self.mounts.keys():
            raise ValueError(f"volumes and mounts: {min(both)} is in both")
        return self

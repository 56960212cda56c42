"""The table of devices and links: found by either name, each figure with its source, and wrong files refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from ccr_dist import devices
from ccr_dist.errors import ConfigError


@pytest.mark.parametrize(
    ("cuda", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200", "h200-141gb"),
        ("NVIDIA H200 NVL", "h200-nvl"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA GH200 480GB", "gh200-96gb"),
        ("NVIDIA GH200 120GB", "gh200-96gb"),
        ("NVIDIA A100-SXM4-80GB", "a100-80gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100-PCIE-40GB", "a100-40gb"),
        ("NVIDIA A10G", "a10g"),
        ("Tesla V100-SXM2-32GB", "v100-32gb"),
        ("Tesla T4", "t4"),
    ],
)
def test_a_device_is_found_by_both_names(cuda: str, name: str) -> None:
    assert devices.named(cuda) is devices.named(name) is devices.named(name.upper())


@pytest.mark.parametrize(
    "cuda",
    [
        "NVIDIA A100-SXM4-80GB MIG 1g.10gb",
        "NVIDIA H100 80GB HBM3 MIG 3g.40gb",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA H100 64GB HBM2",
        "NVIDIA GH200 144G HBM3e",
        "Tesla V100-PCIE-16GB",
        "A100",
    ],
)
def test_another_product_of_a_name_is_not_taken_for_one_of_the_table(cuda: str) -> None:
    """A part of a GPU, another memory, another speed: no peak is better than a wrong one."""
    assert devices.called(cuda) is None
    with pytest.raises(ConfigError, match="not in the table"):
        devices.named(cuda)


def test_no_name_is_that_of_two_devices() -> None:
    for name, device in devices.devices().items():
        for words in device.cuda:
            assert devices.called(" ".join(words)) is device, name


def test_figures_go_together() -> None:
    """What hardware has in common: tensor cores are twice as fast in half the bits, and no figure counts both ways."""
    for name, device in devices.devices().items():
        rates = device.tflops
        if "tf32" in rates:
            assert rates["bf16"] == rates["fp16"] == pytest.approx(2 * rates["tf32"], rel=0.02), name
        assert rates["fp32"] < rates["fp16"] <= 2250 and device.bandwidth <= 8000, name
    # in one direction, in bytes: bits by name
    for name, link in devices.links().items():
        family, digits = name.rstrip("0123456789"), "".join(c for c in name if c.isdigit())
        if link.kind == "between":
            assert link.rate == pytest.approx(float(digits) / 8), name
        elif family == "pcie":
            assert link.rate == pytest.approx(15.75 * 2 ** (int(digits) - 3)), name
    assert [devices.links()[f"nvlink{n}"].rate for n in (2, 3, 4, 5)] == [150, 300, 450, 900]


def test_units() -> None:
    h100 = devices.named("h100-80gb")
    assert h100.peak("bf16") == 989e12 and h100.peak("fp32") == 67e12 and h100.peak("fp32", tf32=True) == 494e12
    assert h100.bytes_per_s == 3.35e12 and 79 * 2**30 < h100.memory_bytes < 80e9 * 1.1
    assert devices.named("v100-32gb").peak("bf16") is None and devices.named("v100-32gb").peak("fp32", tf32=True)
    ndr = devices.link("ndr400", "between")
    assert ndr.bytes_per_s == pytest.approx(0.92 * 50e9) and ndr.alpha == pytest.approx(9.6e-6)


def test_each_node_has_links_of_the_table() -> None:
    for device in devices.devices().values():
        assert devices.link(device.node.link, "inside") and devices.link(device.node.network, "between")
        assert device.node.adapters <= 2 * device.node.gpus


def test_an_unknown_name_gets_similar_ones() -> None:
    with pytest.raises(ConfigError, match=r"'h100-80': not in the table of devices; did you mean h100-80gb"):
        devices.named("h100-80")
    with pytest.raises(ConfigError, match=r"link between nodes 'ndr40'.*did you mean ndr400"):
        devices.link("ndr40", "between")
    with pytest.raises(ConfigError, match="link inside nodes 'ndr400'"):
        devices.link("ndr400", "inside")


OWN = """links:
  mine:
    kind: between
    rate: {rate}
    reached: 0.9
    latency: 5
    sources: {{{sources}}}
"""
SOURCES = "rate: measured, reached: measured, latency: measured"


def test_a_gpu_of_ones_own_is_found_by_cuda_s_name_too(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    figures = "tflops: {fp32: 10, fp16: 40}, memory: 8, bandwidth: 100"
    node = "node: {gpus: 1, link: pcie4, network: ethernet10, adapters: 1}"
    told = "sources: {tflops: t, memory: t, bandwidth: t, node: t}"
    file.write_text(f"gpus:\n  mine: {{title: Mine, cuda: [[Mine, 9000]], {figures}, {node}, {told}}}\n")
    assert devices.named("NVIDIA Mine 9000", file).title == devices.named("mine", file).title == "Mine"
    with pytest.raises(ConfigError, match="not in the table"):
        devices.named("NVIDIA Mine 9000")


def test_a_link_of_ones_own_and_what_is_refused_in_it(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(OWN.format(rate=3, sources=SOURCES))
    assert devices.link("mine", "between", file).bytes_per_s == pytest.approx(2.7e9)
    for rate, sources, said in (
        (0, SOURCES, r"own\.yaml:4: links\.mine\.rate.*0"),
        (-1, SOURCES, r"rate"),
        (".nan", SOURCES, r"rate"),
        (3, "rate: measured", "missing: latency, reached"),
        (3, SOURCES + ", colour: red", "colour: there is no such figure"),
    ):
        file.write_text(OWN.format(rate=rate, sources=sources))
        with pytest.raises(ConfigError, match=said):
            devices.link("mine", "between", file)

"""Times of steps against numbers by hand, on traces that are written down and not traced."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ccr_dist import devices
from ccr_dist.errors import ConfigError
from ccr_dist.plan.cost import calibration as calibrations
from ccr_dist.plan.cost.calibration import Calibration, Product, fitted, nearest
from ccr_dist.plan.cost.collectives import Ranks, Wire
from ccr_dist.plan.cost.copies import Copy, copies, host_work
from ccr_dist.plan.cost.machine import MOVES, PRODUCTS, Machine, between_of, machine_of
from ccr_dist.plan.cost.messages import BUCKET, FIRST, messages
from ccr_dist.plan.cost.seconds import step_time
from ccr_dist.plan.step.operators import Call, Kind

MIB = 2**20
PRODUCT = Kind("product", 1000, 1000, 1000, 1, 2e9, 12e6)
MOVE = Kind("moves", 0, 0, 0, 1, 0.0, 1e9)


def traced(**changes: Any) -> Any:
    values: dict[str, Any] = {
        "rows": 32, "micro_batches": 1, "frozen_bytes": 400 * MIB, "trained_bytes": 101 * MIB, "tensors": (10, 20),
        "frozen_tensors": (10**8,), "blocks": (100 * MIB, 100 * MIB),
        "block_runs": ((1, 1), (1, 1)), "groups": (30,), "trained": 101 * MIB // 4, "sent": {},
        "operators": {"forward": {PRODUCT: 10, MOVE: 2}, "backward": {PRODUCT: 20}, "update": {MOVE: 4}},
    }  # fmt: skip
    return SimpleNamespace(**{**values, **changes})


def machine(ranks: Ranks, **changes: Any) -> Machine:
    return replace(Machine("test", ranks, 1e12, 1e11, 1e-5, queued=True), **changes)


ALONE = Ranks(1, 1, Wire(0, 1e9), Wire(0, 1e9))
FOUR = Ranks(1, 4, Wire(0, 1e11), Wire(0, 1e9))


def test_roofline_by_hand() -> None:
    """A product of 2e9 FLOPs takes 2 ms at 1e12 FLOP/s, longer than its 0.12 ms of traffic; a move of 1e9 bytes 10."""
    found = step_time(traced(), strategy="single", machine=machine(ALONE))
    assert found.parts["compute"] == pytest.approx(30 * 2e-3)
    assert found.parts["memory_traffic"] == pytest.approx(6 * 10e-3)
    assert found.parts["overhead"] == found.parts["collectives"] == found.parts["data"] == 0
    assert found.step == pytest.approx(sum(found.phases.values())) == pytest.approx(0.12)
    # a product that moves more than it computes takes as long as its bytes
    thin = replace(PRODUCT, moved=4e8)
    other = step_time(traced(operators={"forward": {thin: 1}}), strategy="single", machine=machine(ALONE))
    assert (other.parts["compute"], other.parts["memory_traffic"]) == pytest.approx((2e-3, 2e-3))


def test_products_take_the_speed_of_their_precision() -> None:
    """Losses are float32 in a run of bf16. TF32 is torch's default for convolutions only; training leaves it so."""
    import ccr_dist.train.loop  # noqa: F401

    assert not torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.allow_tf32
    h100, v100 = devices.named("h100-80gb"), devices.named("v100-32gb")
    for precision in ("bf16", "fp32"):
        made = machine_of(h100, gpus=1, per_node=1, precision=precision)
        for kind, peak in (
            (PRODUCT, h100.tflops[precision]),
            (replace(PRODUCT, precision="fp32"), 67),
            (replace(PRODUCT, precision="fp64"), 67),
            (replace(PRODUCT, precision="bf16"), 989),
            (replace(PRODUCT, name="convolution", precision="fp32"), 494),
        ):
            assert made.seconds(kind)[0] == pytest.approx(2e9 / (PRODUCTS * peak * 1e12))
    old = machine_of(v100, gpus=1, per_node=1, precision="fp32")
    with pytest.raises(ConfigError, match=r"its table has no tflops\.bf16: add it to the device"):
        old.seconds(replace(PRODUCT, precision="bf16"))
    known = replace(machine_of(h100, gpus=1, per_node=1, precision="bf16"), calibration=calibration())
    assert known.seconds(replace(PRODUCT, precision="fp32"))[0] > 0
    known = replace(known, calibration=calibration(products={"bf16": calibration().products["fp32"]}))
    with pytest.raises(ConfigError, match="no speeds for fp32, in which losses are computed: measure again"):
        known.seconds(replace(PRODUCT, precision="fp32"))


def test_starting_kernels_shows_where_the_device_waits_for_it() -> None:
    small = traced(operators={"forward": {Kind("moves", 0, 0, 0, 1, 0.0, 1e5): 1000}})
    queued = step_time(small, strategy="single", machine=machine(ALONE)).parts
    assert queued["overhead"] == pytest.approx(1000 * 1e-5 - 1000 * 1e-6)
    plain = step_time(small, strategy="single", machine=machine(ALONE, queued=False)).parts
    assert plain["overhead"] == pytest.approx(1000 * 1e-5)
    crowded = step_time(small, strategy="single", machine=machine(ALONE, queued=False, crowd=2.0, factor=1.5))
    assert crowded.step == pytest.approx(3 * sum(plain.values()))


def test_ddp_hides_all_buckets_but_the_last() -> None:
    found = messages(traced(), "ddp", 4)
    gradients = [each for each in found if "gradients" in each.what]
    assert [(each.count, each.hides) for each in gradients] == [(1, False), (4, True)]  # 1 + 4 x 25 MiB
    assert sum(each.count * each.size for each in gradients) == FIRST + 4 * BUCKET
    time = step_time(traced(), strategy="ddp", machine=machine(FOUR))
    beside = 4 * FOUR.all_reduce(gradients[0].size)
    assert time.hidden["collectives"] == pytest.approx(beside), "the backward is longer"
    slow = replace(FOUR, inside=Wire(0, 1e8))
    shown = step_time(traced(), strategy="ddp", machine=machine(slow))
    backward = 20 * 2e-3 + sum(each.size for each in copies(traced(), "ddp", 4)) / 1e11
    assert shown.hidden["collectives"] == pytest.approx(backward)
    assert shown.parts["collectives"] == pytest.approx(
        sum(each.count * slow.seconds(each.kind, each.size) for each in found) - backward
    )
    # on a device whose cores do both nothing is hidden
    assert step_time(traced(), strategy="ddp", machine=machine(FOUR, queued=False)).hidden["collectives"] == 0


def test_what_strategies_send() -> None:
    """Bytes of whole buffers: gradients once (ZeRO-2: for each part of a batch), parameters for each pass."""

    def sizes(strategy: str, **changes: Any) -> dict[tuple[str, str], float]:
        found: dict[tuple[str, str], float] = {}
        for each in messages(traced(**changes), strategy, 4):
            if each.what != "agreement":
                found[each.phase, each.kind] = found.get((each.phase, each.kind), 0) + each.count * each.size
        return found

    trained, frozen = 101 * MIB, 400 * MIB
    assert sizes("ddp") == {("backward", "all_reduce"): trained + 8}
    assert sizes("zero1") == {("backward", "all_reduce"): trained, ("update", "all_gather"): trained}
    assert sizes("zero1", micro_batches=3) == sizes("zero1")
    assert sizes("zero2", micro_batches=3)["backward", "all_reduce"] == 3 * trained
    assert sizes("fsdp2") == {
        ("forward", "all_gather"): trained + frozen, ("backward", "all_gather"): 200 * MIB,
        ("backward", "reduce_scatter"): trained,
    }  # fmt: skip
    runs = ((6, 3), (0, 0))
    assert sizes("fsdp2", block_runs=runs)["forward", "all_gather"] == trained + frozen - 200 * MIB + 6 * 100 * MIB
    assert sizes("fsdp2", block_runs=runs)["backward", "all_gather"] == 3 * 100 * MIB
    three = sizes("zero3", tensors=(101 * MIB // 4,))
    assert three["forward", "all_gather"] == three["backward", "all_gather"] == trained + 4 * 10**8
    kept = sizes("zero3", frozen_tensors=(10**6,), tensors=(20, 10**6))
    assert ("backward", "all_gather") not in kept, "few parameters stay gathered"
    assert messages(traced(), "ddp", 1) == messages(traced(), "single", 1) == []


def test_what_strategies_copy() -> None:
    """Bytes read and written, beside the gradients' own: DDP's buckets, DeepSpeed's and FSDP2's buffers."""
    assert copies(traced(), "ddp", 1) == copies(traced(), "single", 1) == []

    def moved(strategy: str, phase: str, **changes: Any) -> float:
        return sum(each.size for each in copies(traced(**changes), strategy, 4) if each.phase == phase) / (2 * MIB)

    gradients = 101
    assert moved("ddp", "backward") == 2 * gradients
    assert moved("zero1", "backward") == moved("zero2", "backward") == pytest.approx((3 + 2 / 4) * gradients)
    assert moved("zero1", "backward", micro_batches=3) == moved("zero1", "backward")
    assert moved("zero2", "backward", micro_batches=3) == pytest.approx((3 * 3.5 + 3 / 4) * gradients)
    assert moved("zero1", "update") == pytest.approx((1.5 + 1 + 1) / 4 * gradients)
    assert moved("fsdp2", "forward") == pytest.approx(1.25 * (101 + 400))
    assert moved("fsdp2", "backward") == pytest.approx(1.25 * gradients + 1.25 * 200)
    assert moved("zero3", "forward", tensors=(101 * MIB // 4,)) == pytest.approx(1.25 * (101 + 4e8 / MIB))
    assert moved("zero3", "backward", frozen_tensors=(10**6,), tensors=(20, 10**6)) == pytest.approx(3.25 * gradients)
    assert copies(traced(trained=0), "fsdp2", 4) == []
    plain = step_time(traced(trained=0), strategy="ddp", machine=machine(FOUR))
    more = step_time(traced(), strategy="ddp", machine=machine(FOUR))
    assert more.parts["memory_traffic"] == pytest.approx(plain.parts["memory_traffic"] + 4 * 101 * MIB / 1e11)


def test_copies_take_their_own_speed() -> None:
    """Into memory that is there, and into memory that the system has to find; `moves` reads strided tensors, too."""
    known = calibration(copies=((1e3, 8e9),), clones=((1e3, 2e9),))
    assert [known.moving(1e6, name) for name in ("moves", "copy", "clone")] == [4e9, 8e9, 2e9]
    assert calibration().moving(1e6, "clone") == 4e9
    here = machine_of(None, gpus=2, per_node=2, precision="fp32", calibration=known)
    found = step_time(traced(operators={}), strategy="zero1", machine=here)
    by_hand = sum(each.size / (2e9 if each.new else 8e9) for each in copies(traced(), "zero1", 2))
    assert found.parts["memory_traffic"] == pytest.approx(by_hand)
    # by the size of the memory that is asked for, not by that of a gradient
    large = calibration(clones=((1e3, 8e9), (2e8, 8e9), (2.0001e8, 1e9)))
    here = machine_of(None, gpus=2, per_node=2, precision="fp32", calibration=large)
    by_size = {each.what: each.size / each.seconds(here) for each in copies(traced(trained_bytes=10**8), "zero1", 2)}
    assert by_size["gradients into the bucket"] == pytest.approx(8e9)
    more = Copy("backward", 1e6, 1000, "a larger bucket", new=1.1e8)
    assert 1e6 / more.seconds(here) == pytest.approx(1e9)


def test_what_engines_do_on_the_host() -> None:
    """Microseconds by hand: of a tensor, of one that ZeRO-3 cuts, of a frozen block whenever it runs."""
    kinds = {"small": (1, 2, 4), "cut": (8, 16, 32), "frozen": (12, 24, 0), "block": (64, 128, 0)}
    parts = ("forward", "backward", "update")
    each = {f"{kind} {part}": 1e-6 * us for kind, row in kinds.items() for part, us in zip(parts, row, strict=True)}

    def spent(strategy: str, **changes: Any) -> list[float]:
        trace = traced(tensors=(10, 20, 20_000), frozen_tensors=(10**6,) * 24, **changes)
        return [round(1e6 * host_work(trace, strategy, part, each), 6) for part in parts]

    for strategy in ("ddp", "zero1", "zero2"):
        measured = {key: value for key, value in each.items() if key.startswith("small")}
        trace = traced(tensors=(10, 20, 20_000))
        assert [round(1e6 * host_work(trace, strategy, part, measured), 6) for part in parts] == [3, 6, 12]
    assert spent("zero3") == [2 + 8 + 24, 4 + 16 + 48, 8 + 32]
    assert spent("zero3", micro_batches=3) == [6 * 34, 3 * 68, 40], "each part runs forward twice, backward once"
    assert spent("fsdp2", block_runs=((6, 3), (1, 0)))[:2] == [3 + 7 * 64, 6 + 3 * 128]
    trace, alone = traced(operators={}), {"small forward": 0.25, "small backward": 0.5, "small update": 1.0}
    for name, more in (("ddp", {"ddp": alone}), ("zero1", {"ddp": alone})):
        here = machine_of(None, gpus=2, per_node=2, precision="fp32", calibration=calibration(engines=more))
        calls = sum(each.calls for each in copies(trace, name, 2))
        by_hand = 2 * 1.75 if name in more else calls * 1e-5
        assert step_time(trace, strategy=name, machine=here).parts["overhead"] == pytest.approx(by_hand)
    assert host_work(trace, "ddp", "losses", alone) == host_work(traced(trained=0), "ddp", "forward", alone) == 0


def test_features_of_the_losses_are_sent_by_every_strategy() -> None:
    sent = {"losses": {Call("all_gather", 4096): 2}, "backward": {Call("all_reduce", 4096): 2}}
    for strategy in ("ddp", "zero1", "zero2", "zero3", "fsdp2"):
        found = [each for each in messages(traced(sent=sent), strategy, 4) if each.what.startswith("features")]
        assert [(each.phase, each.kind, each.size, each.count) for each in found] == [
            ("losses", "all_gather", 4096, 2), ("backward", "all_reduce", 4096, 2),
        ]  # fmt: skip


def test_reading_shows_as_far_as_it_takes_longer() -> None:
    slow = step_time(traced(), strategy="single", machine=machine(ALONE), workers=2, rows_per_s=50)
    assert slow.parts["data"] == pytest.approx(32 / 100 - 0.12) and slow.step == pytest.approx(0.32)
    assert slow.hidden["data"] == pytest.approx(0.12)
    fast = step_time(traced(), strategy="single", machine=machine(ALONE), workers=2, rows_per_s=1000)
    assert fast.parts["data"] == 0
    alone = step_time(traced(), strategy="single", machine=machine(ALONE), workers=0, rows_per_s=1000)
    assert alone.parts["data"] == pytest.approx(0.032), "the rank itself reads"


def test_the_machine_of_a_device() -> None:
    h100 = devices.named("h100-80gb")
    made = machine_of(h100, gpus=16, per_node=8, precision="bf16")
    assert (made.flops, made.bytes_per_s) == (PRODUCTS * 989e12, MOVES * 3350e9)
    assert made.ranks.nodes == 2 and made.ranks.between.rate == pytest.approx(8 * 0.92 * 50e9)
    for per_node in (1, 8):
        assert between_of(h100, "hdr200x4", per_node).rate == pytest.approx(4 * 0.92 * 25e9)
    for per_node, adapters in ((8, 8), (4, 4), (1, 1), (16, 16)):
        assert between_of(h100, None, per_node).rate == pytest.approx(adapters * 0.92 * 50e9)
    assert between_of(devices.named("a100-40gb"), None, 1).rate > 0, "a node has an adapter"
    for changes, said in (
        ({"gpus": 12}, "12: not a multiple of the 8 GPUs of a node.*take 8 or 16"),
        ({"network": "ndr40"}, "did you mean ndr400"),
        ({"network": "ndr400x0"}, "at least one adapter"),
    ):
        with pytest.raises(ConfigError, match=said):
            machine_of(h100, **{"gpus": 16, "per_node": 8, "precision": "bf16", **changes})
    with pytest.raises(ConfigError, match="no units for bf16; it has fp16, fp32"):
        machine_of(devices.named("v100-32gb"), gpus=1, per_node=1, precision="bf16")


def calibration(**changes: Any) -> Calibration:
    rows = tuple(Product("product", m, 64, 64, 1, m * 1e9) for m in (16, 64, 256))
    return replace(
        Calibration(
            {"name": "here", "torch": "2", "device": "cpu", "clock": "wall"}, 2, 1, {"fp32": rows},
            ((1e3, 1e9), (1e5, 4e9)), 1e-5, 2**34, 2, {"all_reduce": 1e-3, "all_gather": 2e-3},
            {"all_reduce": 1e-9, "all_gather": 2e-9},
        ),
        **changes,
    )  # fmt: skip


def test_speeds_between_those_that_were_measured() -> None:
    known = calibration()
    kind = Kind("product", 64, 64, 64, 1, 1.0, 1.0)
    assert nearest(known, kind, "fp32") == 64e9
    assert 16e9 < nearest(known, replace(kind, m=32), "fp32") < 64e9
    assert nearest(known, replace(kind, name="attention"), "fp32") == 64e9, "by products, where none were measured"
    assert (known.moving(10), known.moving(1e4), known.moving(1e9)) == pytest.approx((1e9, 2e9, 4e9))
    assert fitted([(1.0, 1.1), (1.0, 1.1)]) == pytest.approx(1.1)


def test_wires_of_a_calibration_give_its_measurements_back() -> None:
    made = machine_of(None, gpus=2, per_node=2, precision="fp32", calibration=calibration())
    for kind in ("all_reduce", "all_gather"):
        alpha, beta = calibration().alpha[kind], calibration().beta[kind]
        got = made.ranks.ring(1e6) if kind == "all_reduce" else made.ranks.all_gather(1e6)
        assert got == pytest.approx(alpha + 1e6 * beta)
    crowd = machine_of(None, gpus=4, per_node=4, precision="fp32", calibration=calibration())
    assert made.crowd == 1 and crowd.crowd == 2, "four ranks of one thread on two cores"
    with_two = step_time(traced(operators={}), strategy="ddp", machine=crowd)
    alone = step_time(traced(operators={}), strategy="ddp", machine=replace(crowd, crowd=1.0))
    assert with_two.step == pytest.approx(2 * alone.step), "on a CPU the cores send, too"
    several = Ranks(4, 1, crowd.ranks.inside, Wire(1e-6, 1e9))
    bare = traced(operators={}, trained=0)
    over = [step_time(bare, strategy="ddp", machine=replace(crowd, ranks=several, crowd=c)).step for c in (1.0, 2.0)]
    assert over[0] == over[1], "a network does not wait for a core"


def test_processor_time_becomes_time_where_ranks_take_turns() -> None:
    """Another rank's turn is not in it, however many were measured together."""
    for processes in (1, 2, 4):
        about = {"name": "here", "torch": "2", "device": "cpu", "clock": "cpu"}
        known = calibration(machine=about, processes=processes)
        crowds = [machine_of(None, gpus=n, per_node=n, precision="fp32", calibration=known).crowd for n in (1, 2, 4)
                  if processes > 1 or n == 1]  # fmt: skip
        assert crowds == [1, 1, 2][: len(crowds)]


def test_a_calibration_says_what_it_does_not_know() -> None:
    for changes, precision, said in (
        ({}, "bf16", "no speeds for bf16, only for fp32"),
        ({"processes": 1, "alpha": {}, "beta": {}}, "fp32", "measured on one process"),
    ):
        with pytest.raises(ConfigError, match=said):
            machine_of(None, gpus=2, per_node=2, precision=precision, calibration=calibration(**changes))
    with pytest.raises(ConfigError, match="say how nodes are joined with --network"):
        machine_of(None, gpus=4, per_node=2, precision="fp32", calibration=calibration())
    four = machine_of(None, gpus=4, per_node=2, precision="fp32", calibration=calibration(), network="hdr200x4")
    assert four.ranks.between.rate == pytest.approx(4 * 0.92 * 25e9), "four adapters, without a device"


def test_a_calibration_is_kept_and_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "here.json"
    whole = calibration(copies=((1e3, 1e9),), clones=((1e3, 1e9),), engines={"ddp": {"small update": 0.0}})
    calibrations.write(whole, file)
    assert calibrations.read(file) == whole
    text = file.read_text()
    for changed, said in (
        (text.replace('"cores": 2', '"cores": 4'), "does not match its digest"),
        ("{}", "no calibration of this version"),
        ("[1]", "not a JSON object"),
    ):
        file.write_text(changed)
        with pytest.raises(ConfigError, match=said):
            calibrations.read(file)
    with pytest.raises(ConfigError, match=r"no such file; `ccr-dist plan \.\.\. --measure`"):
        calibrations.read(tmp_path / "none.json")
    calibrations.write(calibration(beta={"all_reduce": 0.0, "all_gather": 1e-9}), file)
    with pytest.raises(ConfigError, match="a speed of 0"):
        calibrations.read(file)
    calibrations.write(calibration(clones=((1e3, 0.0),)), file)
    with pytest.raises(ConfigError, match="a speed of 0"):
        calibrations.read(file)
    calibrations.write(calibration(engines={"ddp": {"small update": -1.0}}), file)
    with pytest.raises(ConfigError, match="an engine that takes no number of seconds"):
        calibrations.read(file)
    calibrations.write(calibration(alpha={"all_reduce": -1.0, "all_gather": 1e-3}), file)
    with pytest.raises(ConfigError, match=r"^calibration .*a speed of 0"):
        calibrations.read(file, "calibration")

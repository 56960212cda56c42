"""The planner's predictions for this device beside what is measured on it: seconds and peak memory of DASD's step
(CMA), from the table of devices, and from a calibration made here. Off by how much is the result: nothing fails for it.

In the small form the device is one of the table, and nothing is compared: that the planner can be asked.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks import dasd_data, dasd_speed, methods
from tests.gpu import steps
from tests.gpu.part import Found, run

PRECISIONS = ("fp32", "bf16")
STAND_IN = "h100-80gb"


def planned(found: Found) -> None:
    try:
        from ccr_dist import devices
        from ccr_dist.methods.run_config import from_dict
        from ccr_dist.plan.measure import measure
        from ccr_dist.plan.predict import predict
    except ImportError as error:
        found.skip(f"this version has no planner ({error})")
        return
    with tempfile.TemporaryDirectory() as folder:
        asked = steps.sizes(found.cpu, Path(folder))
        steps.texts(asked.work, asked.rows)
        dasd_data.embeddings(asked.work / "mbert", steps.pieces(asked.pieces), 3)
        dasd_data.build(asked)
        device = devices.named(STAND_IN) if found.cpu else devices.called(gpu())
        if device is None:
            found.line(device=gpu(), note="the table of devices does not have it; only the calibration is compared")
        ways: dict[str, dict[str, Any]] = {} if device is None else {"table": {"device": device}}
        if not found.cpu:
            calibration = measure(device="cuda", precisions=PRECISIONS)
            ways["calibration"] = {"device": device, "calibration": calibration}
        for precision in PRECISIONS:
            job = {"stage": "cma", "line": {**steps.EXACT, "precision": precision}, "steps": asked.steps}
            config = from_dict(dasd_speed.config(asked, job), name="bench")
            line = None if found.cpu else steps.measured(lambda config=config: methods.measure(config))
            for way, given in ways.items():
                try:
                    (expected,) = predict(config, gpus=1, per_node=1, strategy="single", **given)
                except NotImplementedError:
                    found.skip("the planner of this version predicts nothing yet")
                    return
                found.line(precision=precision, by=way, **beside(expected, line, asked.batch))


def gpu() -> str:
    import torch

    return torch.cuda.get_device_name()


def beside(expected: Any, line: dict[str, Any] | None, batch: int) -> dict[str, Any]:
    """What was predicted, what was measured, and predicted by measured. Memory: what torch allocates."""
    allocated = sum(size for part, size in expected.memory.items() if part not in ("process", "fragmentation"))
    values: dict[str, Any] = {"step_s": expected.seconds["step"], "peak_gb": allocated / 1e9}
    if line is None or "refused" in line:
        return values if line is None else values | {"measured": line["refused"]}
    measured = {"step_s": batch / steps.rate(line), "peak_gb": line["peak_mb"] * 2**20 / 1e9}
    ratios = {f"{key}/measured": round(values[key] / measured[key], 3) for key in values}
    return values | {f"{key}, measured": value for key, value in measured.items()} | ratios


if __name__ == "__main__":
    run(planned)

"""How often to save, by closed forms, against what papers say; and rates with their sources."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from ccr_dist.errors import ConfigError
from ccr_dist.resources import RATES
from ccr_dist.simulate import closed
from ccr_dist.simulate.advise import advise
from ccr_dist.simulate.curve import optima
from ccr_dist.simulate.events import interval_of
from ccr_dist.simulate.schema import DAY, Cause, Checkpoint, Job, Rates, load_rates
from ccr_dist.simulate.times import Times

MINUTE = 60.0


@pytest.mark.parametrize(("hours", "minutes"), [(24, 117), (6, 57), (0.25, 9.1)])
def test_daly_s_own_figures(hours: float, minutes: float) -> None:
    """Figures 3 to 5 of Daly (2006): a dump of 5 minutes."""
    found = closed.daly(5 * MINUTE, hours * 3600) / MINUTE
    assert found == pytest.approx(minutes, abs=0.5 if minutes > 10 else 0.05)
    exact = closed.optimal(save=5 * MINUTE, rate=1 / (hours * 3600)) / MINUTE
    assert exact == pytest.approx(found, rel=0.005)


@pytest.mark.parametrize("save", [0.1, 30.0, 900.0])
def test_the_optimum_solves_its_equation_and_is_one(save: float) -> None:
    rate = 1e-4
    found = closed.optimal(save=save, rate=rate)
    assert math.exp(rate * (found + save)) * (1 - rate * found) == pytest.approx(1, abs=1e-6)
    best = closed.ettr(found, save=save, rate=rate)
    assert all(closed.ettr(found * factor, save=save, rate=rate) < best for factor in (0.8, 1.25))


def test_orders_of_the_optima() -> None:
    save, mtbf = 20.0, 10_000.0
    assert closed.availability_optimal(save, mtbf, 0) == pytest.approx(math.sqrt(2 * mtbf * save + save**2))
    assert closed.daly(save, mtbf) < closed.young(save, mtbf) < closed.availability_optimal(save, mtbf, 600)
    assert closed.daly(2 * mtbf, mtbf) == mtbf

    def availability(interval: float) -> float:
        return (1 - save / (interval + save)) * mtbf / (mtbf + 600 + (interval + save) / 2)

    best = closed.availability_optimal(save, mtbf, 600)
    assert availability(best) > max(availability(best * 0.98), availability(best * 1.02))


def test_daly_s_run_time_is_the_inverse_of_the_ratio() -> None:
    mtbf, save, recovery, interval = 3600.0, 60.0, 120.0, 900.0
    run_time = mtbf * math.exp(recovery / mtbf) * math.expm1((interval + save) / mtbf) / interval
    found = closed.ettr(interval, save=save, rate=1 / mtbf, survives=math.exp(-recovery / mtbf))
    assert found == pytest.approx(1 / run_time, rel=1e-12)


def test_no_failures_and_hopeless_ones() -> None:
    assert closed.ettr(900, save=100, rate=0) == 0.9
    assert closed.ettr(900, save=100, rate=0, write=1900) == pytest.approx(0.45)
    assert closed.ettr(1e9, save=0, rate=1) == 0


def test_what_meta_says_of_its_clusters() -> None:
    """arXiv 2410.21680: MTTF 1.8 h at 16,384 and 0.23 h at 131,072 GPUs; ETTR of 16,000 GPUs 0.7 with checkpoints every
    60 minutes and 0.93 every 5; of 2,048 to 4,096 GPUs over 0.9."""
    rate = load_rates("rsc1").causes["hardware"].per_day
    assert rate is not None
    assert 24 / (2048 * rate) == pytest.approx(1.8, abs=0.05)
    assert 24 / (16384 * rate) == pytest.approx(0.23, abs=0.005)

    def ettr(nodes: int, minutes: float) -> float:
        return closed.meta_ettr(nodes, rate / DAY, 5 * MINUTE, minutes * MINUTE)

    assert ettr(2000, 60) == pytest.approx(0.7, abs=0.02)
    assert ettr(2000, 5) == pytest.approx(0.93, abs=0.005)
    assert min(ettr(256, 60), ettr(512, 60)) > 0.9


def test_meta_s_estimate_is_the_first_order_of_the_exact_ratio() -> None:
    nodes, rate = 500, 0.0065 / DAY
    exact = closed.ettr(600, save=0, rate=nodes * rate, survives=math.exp(-nodes * rate * 300))
    first = closed.meta_ettr(nodes, rate, 300, 600)
    assert exact == pytest.approx(first, abs=(1 - first) ** 2)


def test_rates_say_where_they_come_from() -> None:
    assert {"llama3", "byterobust", "rsc1", "rsc2", "opt175b"} <= set(RATES.files())
    for name in RATES.files():
        rates = load_rates(name)
        assert "arXiv" in rates.source and rates.gpus and rates.days
        assert rates.assumed or rates.reported is None, f"{name}: what had to be assumed is not said"
    llama = load_rates("llama3")
    assert llama.gpus and llama.days
    per_day = llama.causes["unexpected"].per_day
    assert per_day and per_day * llama.days * llama.gpus / 8 == pytest.approx(419, abs=0.01)


def test_advice() -> None:
    found = advise("llama3", gpus=16384, stall=3, restart="10m", step=5)
    assert found.interruptions_per_day == pytest.approx(466 / 54, rel=1e-3)
    assert found.every_steps and found.interval_s == found.every_steps * 5
    assert found.override == f"runtime.checkpoint_every={found.every_steps}"
    assert found.ettr + found.saving + found.lost + found.recovering == pytest.approx(1)
    assert found.interval_s == pytest.approx(found.young_s, rel=0.1)
    assert found.to_json()["override"] in found.sentence()
    other = [advise("llama3", gpus=16384, stall=3, restart="10m", step=5 * n).ettr for n in (20, 200)]
    assert max(other) < found.ettr
    small = advise("llama3", gpus=64, stall=3, restart="10m")
    assert small.interval_s > found.interval_s and small.ettr > found.ettr and small.override is None


def test_advice_on_a_save_that_is_written_beside() -> None:
    found = advise("rsc1", gpus=16384, stall=0, write="4m", restart=300)
    assert found.interval_s == 240 and found.saving == 0
    in_steps = advise("rsc1", gpus=16384, stall=0, write="4m", restart=300, step=50)
    assert in_steps.every_steps == 5  # 4.8: a save does not begin before the one before is written
    assert advise("rsc1", gpus=16384, stall=0, restart=300, step=2).every_steps == 1


def test_announced_stops_alone_give_no_interval() -> None:
    """The ratio only grows with the interval then."""
    announced = Cause(scope="job", per_day=1, warned=True)
    rates = Rates(title="planned", source="here", causes={"planned": announced})
    with pytest.raises(ConfigError, match="every interruption of this job is announced"):
        advise(rates, gpus=64, stall=30, restart=300)
    job = Job(causes=rates.causes, gpus=64, checkpoint=Checkpoint(every=600.0, stall=30))
    assert optima(job) == {} and interval_of(job) == 600


@pytest.mark.parametrize("warned", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("write", [0.0, 600.0])
@pytest.mark.parametrize("save", [0.1, 30.0, 900.0])
def test_no_interval_of_a_fine_grid_is_better(save: float, write: float, warned: float) -> None:
    of: dict[str, float] = {"save": save, "rate": 1e-4, "write": write, "warned": warned}
    best = closed.ettr(closed.optimal(**of), **of)
    grid = np.geomspace(max(write, 1.0), 1e6, 2000)
    assert best >= max(closed.ettr(float(each), **of) for each in grid) - 1e-6


def test_recoveries_that_vary() -> None:
    fixed = advise("rsc1", gpus=16384, stall=10, restart=600)
    for times in (
        Times(kind="exponential", mean=600),
        Times(kind="lognormal", mean=600, spread=1),
        Times(kind="uniform", low=0, high=1200),
    ):
        found = advise("rsc1", gpus=16384, stall=10, restart=times)
        # what is long is interrupted more often, and a new attempt may be short
        assert fixed.ettr < found.ettr < fixed.ettr + 0.01
        assert found.interval_s == pytest.approx(fixed.interval_s)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"failures": "lama3"}, "did you mean 'llama3'"),
        ({"failures": "nobody"}, "there are: byterobust"),
        ({"gpus": 0}, "gpus: 0: expected 1 to"),
        ({"gpus": 12}, "no multiple of the GPUs of a node, 8"),
        ({"stall": 0}, "costs nothing"),
        ({"stall": "soon"}, "stall: 'soon' is no duration"),
        ({"stall": -1}, "stall: '-1' is no duration"),
        ({"restart": "1e999"}, "restart: '1e999' is no duration"),
        ({"step": 0.0}, "step: 0 s: expected more than 0"),
        ({"per_node": 0}, "per_node: 0: expected at least 1"),
        ({"per_node": -8}, "per_node: -8: expected at least 1"),
    ],
)
def test_what_cannot_be(change: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        advise(**{"failures": "llama3", "gpus": 64, "stall": 10, "restart": 300, **change})


@pytest.mark.parametrize(
    ("cause", "said"),
    [
        ("per_day: 0", "per_day: expected more than 0"),
        ("per_day: -1", "per_day: expected more than 0"),
        ("scope: node", "per_day or at, one of them"),
        ("per_day: 1, at: [5]", "per_day or at, one of them"),
        ("per_day: 1, scope: rack", "scope"),
        ("per_day: 1, scope: job, takes: true", "takes no node"),
        ("per_day: 1, restart: {kind: uniform, low: 9, high: 3}", "low .9 s. is more than high"),
        ("per_day: 1, restart: {kind: lognormal, mean: 9}", "takes mean and spread"),
        ("per_day: 1, repairs: 5", "repairs"),
    ],
)
def test_rates_of_one_s_own_that_cannot_be(tmp_path: Path, cause: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"title: mine\nsource: a log\ncauses:\n  x: {{{cause}}}\n")
    with pytest.raises(ConfigError, match=said) as error:
        advise(path, gpus=64, stall=10, restart=300)
    assert "mine.yaml:" in str(error.value)

"""The event model against one that goes through a job second by second."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ccr_dist.simulate.events import simulate
from ccr_dist.simulate.outcome import STATES
from ccr_dist.simulate.schema import Job

LENGTH = 4000


@dataclass
class BySecond:
    """A job of whole seconds. Times: of the next change of state, or none."""

    every: int
    stall: int
    write: int
    detection: int
    restart: int
    repair: int
    queue: int | None
    spares: int
    takes: bool
    warned: bool
    fails: list[int]
    spent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    interruptions: int = 0
    again: int = 0

    def run(self) -> BySecond:
        trained = written = phase = 0  # seconds of training so far, in the newest checkpoint, of the current period
        writing: list[tuple[int, int]] = []  # when a checkpoint will be there, and what is in it
        pool = [0] * self.spares  # when each node that is not in the job is there
        until = {"saving": 0, "detecting": 0, "waiting": 0, "restarting": 0}
        there = 0
        for now in range(LENGTH):
            for when, what in [each for each in writing if each[0] <= now]:
                written = what
                writing.remove((when, what))
            for _ in range(self.fails.count(now)):
                running = now >= until["restarting"]
                save = self.stall + self.write if self.warned and running else 0
                if running:
                    self.interruptions += 1
                    if self.warned:
                        written = trained
                    self.spent["training"] -= trained - written
                    self.spent["lost"] += trained - written
                    trained = written
                else:
                    self.again += 1
                writing, phase = [], 0
                noticed = now + save + (0 if self.warned else self.detection)
                there = max(there, noticed)
                if self.takes:
                    pool.append(noticed + self.repair)
                    at_hand = [each for each in pool if each <= noticed]
                    if self.queue is not None:
                        for each in at_hand[self.spares :]:
                            pool.remove(each)
                    if self.queue is not None and not at_hand[: self.spares]:
                        there = max(there, noticed + self.queue)
                    else:
                        first = min(pool)
                        pool.remove(first)
                        there = max(there, first)
                until = {
                    "saving": now + save,
                    "detecting": noticed,
                    "waiting": there,
                    "restarting": there + self.restart,
                }
            state = next((state for state, end in until.items() if now < end), None)
            if state is not None:
                self.spent[state] += 1
                continue
            phase += 1
            if phase <= self.every:
                trained += 1
                self.spent["training"] += 1
            else:
                self.spent["saving"] += 1
            if phase == self.every + self.stall:
                phase = 0
                writing.append((now + 1 + self.write, trained))
        return self


# a smaller example would say no more, and each takes a walk of 4,000 seconds
@settings(max_examples=100, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
@given(
    every=st.integers(20, 300),
    stall=st.integers(0, 30),
    write=st.integers(0, 20),
    detection=st.integers(0, 60),
    restart=st.integers(0, 200),
    repair=st.integers(1, 1500),
    queue=st.none() | st.integers(0, 200),
    spares=st.integers(1, 3),
    takes=st.booleans(),
    warned=st.booleans(),
    fails=st.lists(st.integers(1, LENGTH - 1), min_size=1, max_size=12, unique=True),
)
def test_second_by_second(**of: Any) -> None:
    by_second = BySecond(**{**of, "fails": sorted(of["fails"])}).run()
    cause = {"scope": "node", "at": of["fails"], "takes": of["takes"], "warned": of["warned"]}
    job = {
        "gpus": 64,
        "days": LENGTH / 86400,
        "checkpoint": {name: of[name] for name in ("every", "stall", "write")},
        **{name: of[name] for name in ("detection", "restart", "repair", "queue", "spares")},
        "causes": {"x": cause},
        "repetitions": 1,
    }
    found = simulate(Job.model_validate(job))
    assert {state: found.seconds[state][0] for state in STATES} == pytest.approx(by_second.spent, abs=1e-6)
    assert (found.interruptions[0], found.again[0]) == (by_second.interruptions, by_second.again)
    assert found.work[0] == pytest.approx(by_second.spent["training"], abs=1e-6)

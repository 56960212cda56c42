"""YAML with bases and overrides: what wins, and whether errors name file, line and the nearest key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from ccr_dist import yamlfile
from ccr_dist.config import Frozen
from ccr_dist.errors import ConfigError


class Cat(Frozen):
    kind: Literal["cat"]
    whiskers: int = 12


class Dog(Frozen):
    kind: Literal["dog"]
    good: bool = True


class Inner(Frozen):
    rate: float = 0.1
    names: tuple[str, ...] = ()


class Whole(Frozen):
    title: str
    inner: Inner = Inner()
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    parts: dict[str, Inner] = Field(default_factory=dict)
    rows: tuple[Inner, ...] = ()


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def load(path: Path, *overrides: str) -> Whole:
    return yamlfile.validate(Whole, yamlfile.load(path, overrides))


def test_bases_merge_in_order_and_the_file_itself_wins(tmp_path: Path) -> None:
    write(tmp_path, "one.yaml", "title: one\ninner: {rate: 1, names: [a, b]}")
    write(tmp_path, "two.yaml", "inner: {rate: 2}")
    path = write(tmp_path, "run.yaml", "base: [one.yaml, two.yaml]\ninner: {names: [c]}")
    assert load(path) == Whole(title="one", inner=Inner(rate=2, names=("c",)))


def test_overrides_reach_sections_lists_and_missing_sections(tmp_path: Path) -> None:
    path = write(tmp_path, "run.yaml", "title: x\nrows:\n- {rate: 1}\n- {rate: 2}")
    config = load(path, "inner.rate=1e-3", "rows.1.rate=5", "parts.new.names=[p, q]")
    assert (config.inner.rate, config.rows[1].rate, config.parts["new"].names) == (1e-3, 5, ("p", "q"))


def test_exponent_without_point_is_a_number_but_quoted_text_stays(tmp_path: Path) -> None:
    assert load(write(tmp_path, "run.yaml", "title: '1e3'\ninner: {rate: 1e-3}")) == Whole(
        title="1e3", inner=Inner(rate=0.001)
    )


def test_norwegian_is_a_language(tmp_path: Path) -> None:
    assert list(yamlfile.load(write(tmp_path, "run.yaml", "parts:\n  no: {}\n  es: {}")).data["parts"]) == ["no", "es"]
    values = yamlfile.load(write(tmp_path, "run.yaml", "languages: [no, de]\ntrace: off\ncache: true\ndry: False")).data
    assert values == {"languages": ["no", "de"], "trace": "off", "cache": True, "dry": False}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("title: x\ninner:\n  rat: 1", "run.yaml:3: unknown key 'inner.rat'; did you mean 'rate'?"),
        ("title: x\nparts:\n  es:\n    raet: 1", "run.yaml:4: unknown key 'parts.es.raet'; did you mean 'rate'?"),
        ("title: x\nrows:\n- rate: 1\n- zzz: 1", "run.yaml:4: unknown key 'rows.1.zzz'; valid keys: names, rate"),
        ("title: x\npet: {kind: dog, whisker: 3}", "run.yaml:2: unknown key 'pet.whisker'; valid keys: good, kind"),
        (
            "title: x\npet:\n  kind: cat\n  wiskers: 3",
            "run.yaml:4: unknown key 'pet.wiskers'; did you mean 'whiskers'?",
        ),
        ("inner: {rate: fast}\ntitle: x", "run.yaml:1: inner.rate:"),
        ("inner: {}", "'title' is missing"),
        ("title: x\ntitle: y", "run.yaml:2: key 'title' is given twice"),
        ("title: [x", "run.yaml:1: not valid YAML"),
        ("- a", "run.yaml:1: expected `key: value` lines"),
        ("base: nowhere.yaml", "nowhere.yaml: no such file (a base of"),
    ],
)
def test_errors_name_the_place(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(write(tmp_path, "run.yaml", text))
    assert expected in str(error.value)


def test_an_error_in_a_base_names_the_base(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "title: x\n\ninner:\n  typo: 1")
    with pytest.raises(ConfigError, match=r"base\.yaml:4: unknown key 'inner\.typo'"):
        load(write(tmp_path, "run.yaml", "base: base.yaml\ninner: {rate: 2}"))


def test_circular_base(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "base: b.yaml")
    with pytest.raises(ConfigError, match="circle"):
        load(write(tmp_path, "b.yaml", "base: a.yaml"))


@pytest.mark.parametrize("override", ["inner.rate", "=3", "title.sub=3", "rows.7.rate=1", "inner.rate=[1"])
def test_malformed_overrides(tmp_path: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="override"):
        load(write(tmp_path, "run.yaml", "title: x"), override)


def test_an_unknown_override_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"override 'inner\.rats=1': unknown key 'inner\.rats'; did you mean 'rate'"):
        load(write(tmp_path, "run.yaml", "title: x"), "inner.rats=1")


class Strict(Frozen):
    whole: int = Field(1, ge=1, le=5)
    part: float = Field(0.5, gt=0, lt=1)
    sure: bool = True
    size: str = Field("8G", pattern=r"^\d+G$", description="memory, such as 8G")
    words: tuple[str, ...] = Field(("a",), min_length=1)
    which: Literal["fp32", "bf16"] = "fp32"
    inner: Inner = Inner()
    pet: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("whole: x", "whole: expected a whole number (got 'x')"),
        ("whole: 1.5", "whole: expected a whole number (got 1.5)"),
        ("whole: 0", "whole: expected at least 1 (got 0)"),
        ("whole: 6", "whole: expected at most 5 (got 6)"),
        ("part: x", "part: expected a number (got 'x')"),
        ("part: 0", "part: expected more than 0 (got 0)"),
        ("part: 1", "part: expected less than 1 (got 1)"),
        ("sure: perhaps", "sure: expected true or false (got 'perhaps')"),
        ("size: [a]", "size: expected text (got ['a'])"),
        ("size: much", r"size: expected text of the form ^\d+G$ (memory, such as 8G) (got 'much')"),
        ("words: x", "words: expected a list, such as [a, b] (got 'x')"),
        ("words: []", "words: expected something here; it is empty (got [])"),
        ("words: [[a]]", "words.0: expected text (got ['a'])"),
        ("which: fp64", "which: expected 'fp32' or 'bf16' (got 'fp64')"),
        ("inner: x", "inner: expected a section of `key: value` lines (got 'x')"),
        ("pet: {kind: cow}", "pet: expected 'kind' to be one of 'cat', 'dog'"),
        ("pet: {whiskers: 1}", "pet: expected a key 'kind'"),
    ],
)
def test_values_of_a_wrong_kind_are_said_in_our_words(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        yamlfile.validate(Strict, yamlfile.load(write(tmp_path, "run.yaml", text)))
    assert str(error.value) == f"{tmp_path}/run.yaml:1: {said}"

"""Whatever a file or an override says, it ends in values or in one ConfigError that names the place; and at once."""

from __future__ import annotations

import os
import re
import string
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field

from ccr_dist import yamlfile
from ccr_dist.cluster.pipeline import plan_of
from ccr_dist.cluster.profile import Profile
from ccr_dist.config import Frozen
from ccr_dist.data.corpora.recipes.base import load_recipe, shipped
from ccr_dist.errors import ConfigError
from ccr_dist.generate.cli import options_of
from ccr_dist.generate.engines.base import check_options, translators
from ccr_dist.generate.engines.generator import generators
from ccr_dist.generate.jobs.prompts import Prompt
from ccr_dist.methods.run_config import check, load_config
from ccr_dist.study.plan import Study

ROOT = Path(__file__).parents[2]
DASD = ROOT / "configs" / "demo" / "dasd.yaml"


class Section(Frozen):
    rate: float = 0.1
    note: str | None = None


class Whole(Frozen):
    title: str = ""
    note: str | None = None
    steps: int = 1
    mode: Literal["on", "off", "fast"] = "off"
    place: Path | None = None
    value: str | int | float = 0
    names: dict[str, str] = Field(default_factory=dict)
    parts: dict[str, Section] = Field(default_factory=dict)
    rows: tuple[str, ...] = ()
    inner: Section = Section()


def read(folder: Path, text: str, *overrides: str, **bases: str) -> Whole:
    for name, said in {**bases, "run": text}.items():
        (folder / f"{name}.yaml").write_text(said)
    return yamlfile.validate(Whole, yamlfile.load(folder / "run.yaml", overrides))


def refused(folder: Path, text: str | bytes, *overrides: str, **bases: str) -> str:
    with pytest.raises(ConfigError) as error:
        if isinstance(text, bytes):
            (folder / "run.yaml").write_bytes(text)
            yamlfile.load(folder / "run.yaml")
        else:
            read(folder, text, *overrides, **bases)
    return str(error.value)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("title=>>pt<< ", ">>pt<< "),
        ("title=translate English to German: ", "translate English to German: "),
        ("title={media}{text}", "{media}{text}"),
        ("title={text}", "{text}"),
        ("title=USER: {media} {text} ASSISTANT:", "USER: {media} {text} ASSISTANT:"),
        ("title=2026-05-01", "2026-05-01"),
        ("title=@cf/meta/llama", "@cf/meta/llama"),
        ("title=123", "123"),
        ("title=007", "007"),
        ("title=1e3", "1e3"),
        ("title=1:30", "1:30"),
        ("title=true", "true"),
        ("title=null", "null"),
        ("title=", ""),
        ("title=a #b", "a #b"),
        ("title= a ", " a "),
        ("title=[x", "[x"),
        ("title=[x]", "[x]"),
        ("title=!x", "!x"),
        ("title=&a *a", "&a *a"),
        ("title=*", "*"),
        ("title=%", "%"),
        ("title=`x`", "`x`"),
        ("title='123'", "123"),
        ('title="a\\nb"', "a\nb"),
        ("title=x=y", "x=y"),
        ("note=null", None),
        ("note=", None),
        ("note=2026-05-01", "2026-05-01"),
        ("place=2026", Path("2026")),
        ("mode=on", "on"),
        ("mode= fast", "fast"),
        ("value=3", 3),
        ("value=2026-05-01", "2026-05-01"),
        ("value=a: b", "a: b"),
        ("names.pt=@x", "@x"),
        ("names.pt=5", "5"),
        ("names={pt: 5, de: 2026-05-01}", {"pt": "5", "de": "2026-05-01"}),
        ("rows=[1, a: b, null, 2e5]", None),
        ("rows=[1, x, 2e5]", ("1", "x", "2e5")),
        ("inner.note=12", "12"),
        ("steps= 3", 3),
    ],
)
def test_text_is_text_where_the_option_is_text(tmp_path: Path, typed: str, meant: Any) -> None:
    if typed.startswith("rows=[1, a"):
        assert "override" in refused(tmp_path, "", typed)
        return
    found: Any = read(tmp_path, "", typed)
    for key in typed.partition("=")[0].split("."):
        found = found[key] if isinstance(found, dict) else getattr(found, key)
    assert found == meant and type(found) is type(meant)


def test_the_same_in_a_file(tmp_path: Path) -> None:
    found = read(
        tmp_path, "title: 2026-05-01\nnote: 1:30\nnames: {no: on, 1: 2, ~: 3}\nvalue: 2026-13-45\nrows: [1e3]\n"
    )
    assert (found.title, found.note, found.value, found.rows) == ("2026-05-01", "1:30", "2026-13-45", ("1e3",))
    assert found.names == {"no": "on", "1": "2", "~": "3"}


def documented() -> list[tuple[Any, str, str]]:
    """Examples in the descriptions of engines' options that are text, as they would be typed."""
    found = []
    for registry in (translators, generators):
        for name in registry.names():
            for key, info in registry.get(name).Options.model_fields.items():
                if info.annotation in (str, str | None):
                    found += [
                        (registry, name, f"{key}={text}")
                        for text in re.findall(r"(?:^|[ (])'([^']*)'", info.description or "")
                    ]
    return found


def test_the_documented_examples_of_options_are_taken_as_they_stand() -> None:
    examples = documented()
    assert any(typed == "prefix=>>pt<< " for _, _, typed in examples), examples
    for registry, name, typed in examples:
        options = check_options(name, registry.get(name).Options, options_of([typed], "@cf/123"))
        key, _, text = typed.partition("=")
        assert getattr(options, key) == text and options.model == "@cf/123"


def test_a_backbone_on_the_command_line() -> None:
    config = load_config(DASD, ["backbone={kind: open_clip, model: 123, pretrained: 2026-05-01}"])
    backbone = config.backbone.model_dump()
    assert (backbone["model"], backbone["pretrained"]) == ("123", "2026-05-01")


def test_a_mapping_of_a_base_can_be_emptied(tmp_path: Path) -> None:
    bases = {"b": "names: {es: x, pt: y}\nparts: {a: {rate: 1}, b: {rate: 2}}\ninner: {rate: 5}\ntitle: t\n"}
    found = read(tmp_path, "base: b.yaml\nnames: !replace {de: z}\nparts: {a: null}\ninner: null\n", **bases)
    assert (found.names, found.parts, found.inner.rate, found.title) == ({"de": "z"}, {"b": Section(rate=2)}, 0.1, "t")
    found = read(
        tmp_path, "base: b.yaml\nnames: !replace {}\nparts: {c: {rate: 3}}", "parts.a=null", "parts.b.rate=7", **bases
    )
    assert (found.names, found.parts) == ({}, {"b": Section(rate=7), "c": Section(rate=3)})


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
LAUGHS += "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdef", "bcdefg", strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LAUGHS, "run.yaml:1: more than 100,000"),
        ("rows: &a [*a]", "run.yaml:1: an anchor that contains itself"),
        ("names: &a {b: *a}", "run.yaml:1: an anchor that contains itself"),
        ("title: !!python/object/apply:os.system [x]", "run.yaml:1: the tag '!!python/object/apply:os.system'"),
        ("title: !secret x", "run.yaml:1: the tag '!secret'"),
        ("title: !!binary aGk=", "run.yaml:1: the tag '!!binary'"),
        ("names: !!set {a}", "run.yaml:1: the tag '!!set'"),
        ("steps: !!int word", "run.yaml:1: steps:"),
        ("names:\n  <<: {a: b}", "run.yaml:2: `<<` is not understood here"),
        ("? [a, b]\n: c", "run.yaml:1: a key is a word"),
        ("{a: b}: c", "run.yaml:1: a key is a word"),
        ("title: x\n~: y", "run.yaml:2: unknown key '~'"),
        ("names: {1: a, 1: b}", "run.yaml:1: key '1' is given twice"),
        ("names:\n  no: a\n  no: b", "run.yaml:3: key 'no' is given twice"),
        ("rows: " + "[" * 200 + "]" * 200, "run.yaml"),
        ("rows: " + "[" * 60 + "]" * 60, "run.yaml:1: nested more than 50 deep"),
        ("{" * 400, "run.yaml"),
        ("title: x\x00", "run.yaml:1: not valid YAML: a character that text cannot have (#x0000)"),
        ("title: x\n\nnote: \x1b[31m", "run.yaml:3: not valid YAML: a character that text cannot have (#x001b)"),
        ("title: x\n---\ntitle: y", "run.yaml:2: not valid YAML: but found another document"),
        ("title: *nowhere", "run.yaml:1: not valid YAML: found undefined alias"),
        ("steps: " + "9" * 5000, "run.yaml:1: steps:"),
        ("base: run.yaml", "'base' goes in a circle"),
        ("base: 3", "run.yaml:1: 'base' is a path or a list of paths, got 3"),
        ("base: {a: b}", "run.yaml:1: 'base' is a path"),
        ("base: [[x]]", "run.yaml:1: 'base' is a path"),
        ("base: ''", "run.yaml:1: 'base' is a path"),
        ('base: "a\\0b"', "cannot be read"),
        ("base: .", "expected a file; this is a folder"),
        ("base: /dev/zero", "/dev/zero: expected a file; this is a device or a pipe"),
        (f"base: {'x' * 300}", "File name too long"),
        (b"title: x\nnote: \xff", "run.yaml:2: not UTF-8 text"),
        (b"# " + b"x" * 2**20, "run.yaml: larger than 1 MiB"),
    ],
)  # fmt: skip
def test_strange_files(tmp_path: Path, text: str | bytes, message: str) -> None:
    assert message in refused(tmp_path, text)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match="a device or a pipe"):
        yamlfile.load(tmp_path / "run.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    with pytest.raises(ConfigError, match=r"loop\.yaml"):
        yamlfile.load(tmp_path / "loop.yaml")


def test_bases_are_read_once_however_often_they_are_named(tmp_path: Path) -> None:
    """Each file names the one before it twice."""
    (tmp_path / "0.yaml").write_text("title: x\n")
    for number in range(1, 45):
        (tmp_path / f"{number}.yaml").write_text(f"base: [{number - 1}.yaml, {number - 1}.yaml]\nsteps: {number}\n")
    assert read(tmp_path, "base: 44.yaml") == Whole(title="x", steps=44)
    for number in range(45, 70):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number - 1}.yaml\n")
    assert "bases of bases, more than 50 deep" in refused(tmp_path, "base: 69.yaml")


SECRETS = [
    "root:x:0:0:root:/root:/bin/bash\ndaemon:x:1\n",
    "token: s3cret\n",
    "steps: s3cret\n",
    "mode: s3cret\n",
    "s3cret: {s3cret: 1}\n",
    "rows: s3cret\n",
    "x: !s3cret y\n",
    "x: *s3cret\n",
    "s3cret: 1\ns3cret: 2\n",
    "base: {s3cret: x}\n",
    "names: {a: [s3cret]}\n",
]


@pytest.mark.parametrize("secret", SECRETS)
def test_errors_quote_nothing_of_files_elsewhere(tmp_path: Path, secret: str) -> None:
    (tmp_path / "elsewhere.yaml").write_text(secret)
    (tmp_path / "mine").mkdir()
    said = refused(tmp_path / "mine", "base: ../elsewhere.yaml\n")
    assert (
        f"{tmp_path}/elsewhere.yaml" in said and "s3cret" not in said and "root" not in said.replace(str(tmp_path), "")
    ), said
    (tmp_path / "mine" / "below").mkdir()
    (tmp_path / "mine" / "below" / "b.yaml").write_text("steps: word\n")
    assert "word" in refused(tmp_path / "mine", "base: below/b.yaml\n")


def test_an_overrides_error_names_the_override(tmp_path: Path) -> None:
    text = "parts: {a: {rate: 1}}\nmode: fast\ninner: {rate: 3}\n"
    for override in (
        "inner={rte: 3}",
        "inner={rate: x}",
        "parts.a=5",
        "parts={a: {rat: 1}}",
        "steps=x",
        "steps=1.5",
        "titel=3",
        "inner.rate={",
    ):
        said = refused(tmp_path, text, override)
        assert said.startswith(f"override {override!r}: ") and "run.yaml" not in said, said
    for override, message in (
        ("runtime.hang=99999", "hang (99999 s) must be less"),
        ("backbone={kind: dual, txt: x}", "did you mean 'text'"),
        ("backbone.kind=open_clip", "unknown key 'backbone."),  # what the file says of another kind
        ("backbone={kind: open_clip}", "'backbone.model' is missing"),
        ("method.name=nowhere", "nowhere"),
    ):
        with pytest.raises(ConfigError) as error:
            load_config(DASD, [override])
        assert message in str(error.value) and f"override {override!r}" in str(error.value), str(error.value)


DEEP = ".".join("a" * 99) + "=1"


@pytest.mark.parametrize(
    "override", ["=", "a", "", ".=1", "a..b=1", DEEP, "steps=\udcff", "²=1", "rows.²=1", "rows.99999999999=1", "base=x"]
)
def test_strange_overrides(tmp_path: Path, override: str) -> None:
    assert "override" in refused(tmp_path, "rows: [a]", override)


KEYS = {key for model in (Whole, Section, Prompt, Profile, Study) for key in model.model_fields}
WORDS = sorted(
    KEYS | {"base", "kind", "name", "steps", "views", "method", "backbone", "data", "stages", "open_clip", "dasd"}
)
ODD = [
    "2026-13-45",
    "1e999",
    "~",
    "<<",
    "=",
    "{n} {x}",
    "0x",
    "1:99:99",
    "$x",
    "{media",
    "!!int x",
    "*a",
    "&a",
    ".inf",
    "../..",
]
MARKS = [*"[]{}:,-?&*!|>%@`'\"#\n \t", ": ", "- ", "---", "<<: ", "!!set", "&a ", "*a", "\n  "]
scalars = st.one_of(
    st.sampled_from([*WORDS, *ODD]),
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.dates(),
    st.binary(max_size=4),
)
keys = st.sampled_from(WORDS) | st.text(max_size=4)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
documents = st.dictionaries(st.sampled_from(WORDS), values, max_size=6).map(
    lambda value: yaml.dump(value, allow_unicode=True)
)
pieces = st.lists(st.sampled_from([*WORDS[:12], *MARKS]) | st.text(string.printable, max_size=3), max_size=30).map(
    "".join
)
dotted = st.lists(keys, min_size=1, max_size=3).map(".".join)
overrides = st.lists(
    st.tuples(dotted, st.just("=") | st.text(max_size=1), pieces | scalars.map(str)).map("".join), max_size=2
)
engines = [(registry, name) for registry in (translators, generators) for name in registry.names()]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(documents | pieces, overrides)
def test_nothing_but_a_config_error_comes_of_any_text(
    tmp_path_factory: pytest.TempPathFactory, text: str, overrides: list[str]
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_text(
        text, encoding="utf-8", errors="surrogateescape" if any("\udc80" <= c <= "\udcff" for c in text) else "replace"
    )
    schemas = [
        lambda model=model: yamlfile.validate(model, yamlfile.load(path, overrides))
        for model in (Whole, Prompt, Profile, Study)
    ]
    whole = [
        lambda: plan_of(yamlfile.load(path, overrides)),
        lambda: check(yamlfile.load(path, overrides)),
        lambda: load_recipe(path, overrides),
    ]
    for call in (*schemas, *whole):
        try:
            call()
        except ConfigError as error:
            assert str(path) in str(error) or "override" in str(error), error


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(st.sampled_from(sorted(shipped())), overrides)
def test_nothing_but_a_config_error_comes_of_any_override(recipe: str, overrides: list[str]) -> None:
    for call in (
        lambda: load_recipe(recipe, overrides),
        lambda: load_config(DASD, overrides),
        lambda: plan_of(yamlfile.load(ROOT / "configs" / "pipelines" / "emoji14.yaml", overrides)),
    ):
        try:
            call()
        except ConfigError as error:
            assert str(error)


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(
    st.sampled_from(
        [(translators, name) for name in translators.names()] + [(generators, name) for name in generators.names()]
    ),
    st.data(),
)
def test_nothing_but_a_config_error_comes_of_any_option(engine: tuple[Any, str], data: st.DataObject) -> None:
    registry, name = engine
    kind = registry.get(name).Options
    names = st.sampled_from([*kind.model_fields, "none"]) | st.text(max_size=2)
    pairs = data.draw(st.lists(st.tuples(names, st.just("="), pieces | scalars.map(str)).map("".join), max_size=3))
    try:
        check_options(name, kind, options_of(pairs, None))
    except ConfigError as error:
        assert str(error)


@pytest.mark.parametrize("kind", ["{a: b}", "[x]", "null", "3", "texts.x"])
def test_a_recipes_kind_of_any_kind(tmp_path: Path, kind: str) -> None:
    (tmp_path / "r.yaml").write_text(f"kind: {kind}\n")
    with pytest.raises(ConfigError, match=r"r\.yaml:1: kind: expected one of"):
        load_recipe(tmp_path / "r.yaml")

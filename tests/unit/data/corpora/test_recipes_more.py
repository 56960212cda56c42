"""animoji: animations become videos with names in many languages; xflickrco: IGLUE's files; packages come from the
user's npm.
"""

from __future__ import annotations

import json
import shutil
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ccr_dist.data.corpora.build import BuildSummary, build
from ccr_dist.data.corpora.recipes import npm
from ccr_dist.data.corpora.recipes.base import load_recipe
from ccr_dist.data.corpora.recipes.emoji14 import fetch_keywords
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.splits import concept, split_of
from ccr_dist.data.table.verify import verify
from ccr_dist.errors import ConfigError, DataBudgetError, DataError
from tests.published import write

# code points: English name; "1f468-..." is written in CLDR with a colon that emoji14's names lack
NAMES = {
    "1f600": "grinning face",
    "1f468-200d-1f9b0": "man: red hair",
    "2764-fe0f": "red heart",
    "1f6d9": "none",
    "1f44b-1f3fb": "wave",
}
SHADES = (0, 80, 160, 240)
TIMES = (100, 300, 100, 100)  # ms


def column(root: Path, name: str) -> dict[str, Any]:
    found = Dataset(root).column(name)
    return {
        key: found.value(s, r) for s in range(len(Dataset(root).shards)) for r, key in enumerate(Dataset(root).keys(s))
    }


def everywhere(out: Path, name: str) -> dict[str, Any]:
    return {
        key: value
        for split in sorted(p.name for p in out.iterdir() if p.is_dir())
        for key, value in column(out / split, name).items()
    }


def animation(path: Path, shades: tuple[int, ...] = SHADES) -> None:
    """Grey squares with soft edges on a transparent ground, shown for TIMES."""
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [Image.new("RGBA", (32, 32), (0, 0, 0, 0)) for _ in shades]
    for frame, shade in zip(frames, shades, strict=True):
        frame.paste((shade, shade, shade, 99), (7, 7, 25, 25))
        frame.paste((shade, shade, shade, 255), (8, 8, 24, 24))
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=list(TIMES[: len(shades)]), lossless=True)


def packages(root: Path, *, spanish: tuple[str, ...] = ("1f600", "2764-fe0f")) -> Path:
    """node_modules of three clips, one that stands still, one with a skin tone, and names; none for U+1F6D9."""
    for stem in NAMES:
        animation(root / "@lobehub/fluent-emoji-anim-1/assets" / f"{stem}.webp")
    Image.new("RGBA", (32, 32)).save(root / "@lobehub/fluent-emoji-anim-1/assets/1f601.webp")
    character = {stem: "".join(chr(int(c, 16)) for c in stem.split("-")).replace("\ufe0f", "") for stem in NAMES}
    names = {stem: {"default": ["key", *name.split()], "tts": [name]} for stem, name in NAMES.items() if name != "none"}
    for lang, stems in {"en": tuple(names), "es": spanish}.items():
        base = {
            character[s]: names[s] if lang == "en" else {"tts": [f"es {NAMES[s]}"]} for s in stems if "200d" not in s
        }
        base["⌚"] = {"default": ["no name"]}
        derived = {character[s]: names[s] for s in stems if "200d" in s} | {character["1f600"]: {"tts": ["not this"]}}
        write(
            root,
            {
                f"cldr-annotations-full/annotations/{lang}/annotations.json": {"annotations": {"annotations": base}},
                f"cldr-annotations-derived-full/annotationsDerived/{lang}/annotations.json": {
                    "annotationsDerived": {"annotations": derived}
                },
            },
        )
    return root


def animoji(tmp_path: Path, *overrides: str, out: str = "out") -> BuildSummary:
    options = [f"source={tmp_path / 'node_modules'}", "packages=[1]", "languages=[en,es]", "size=64"]
    return build(load_recipe("animoji", [*options, *overrides]), tmp_path / out, workers=0, progress=False)


def test_clips_have_the_names_and_splits_of_their_emoji(tmp_path):
    packages(tmp_path / "node_modules")
    summary = animoji(tmp_path)
    out = tmp_path / "out"
    assert verify(out, progress=False) == []
    assert everywhere(out, "caption.en") == {
        "1f600": ["grinning face"],
        "1f468-200d-1f9b0": ["man: red hair"],
        "2764-fe0f": ["red heart"],
    }
    assert everywhere(out, "caption.es") == {
        "1f600": ["es grinning face"],
        "1f468-200d-1f9b0": None,
        "2764-fe0f": ["es red heart"],
    }
    # the concept is that of emoji14, whose name is "man red hair": both put it into one split
    assert everywhere(out, "label.concept") == {
        "1f600": "grinning face",
        "1f468-200d-1f9b0": "man red hair",
        "2764-fe0f": "red heart",
    }
    for stem, name in (("1f600", "grinning face"), ("1f468-200d-1f9b0", "man red hair"), ("2764-fe0f", "red heart")):
        assert stem in column(out / split_of(concept(name)), "label.concept")
    exported = [json.loads(line) for path in summary.exports for line in path.read_text().splitlines()]
    assert {"key": "2764-fe0f", "value": {"views": {"keywords": "key, red, heart"}}} in exported and len(exported) == 3
    notes = "; ".join(summary.notes)
    assert (
        "1 emoji without motion" in notes
        and "1 clips have no English name and are left out: 1f6d9" in notes
        and "es 2" in notes
    )


def test_frames_are_shown_as_long_as_in_the_animation(tmp_path):
    pytest.importorskip("av")
    from ccr_dist.data.media.video import decode_video, probe

    packages(tmp_path / "node_modules")
    animoji(tmp_path)
    film = everywhere(tmp_path / "out", "video")["1f600"]
    about = probe(film)
    assert (about.width, about.height) == (64, 64) and about.seconds == pytest.approx(0.6, abs=0.02)
    six = [picture.getpixel((32, 32))[0] for picture in decode_video(film, frames=60)]  # every frame once
    assert all(abs(a - b) <= 6 for a, b in zip(six, SHADES, strict=True))
    middle = [picture.getpixel((32, 32))[0] for picture in decode_video(film, frames=2)]  # 0.15 s and 0.45 s
    assert all(abs(a - b) <= 6 for a, b in zip(middle, (SHADES[1], SHADES[2]), strict=True))
    corner = decode_video(film, frames=1)[0].getpixel((2, 2))
    assert min(corner) > 245, "what was transparent is white"
    animoji(tmp_path, out="again")
    assert everywhere(tmp_path / "again", "video")["1f600"] == film, "the same bytes"


def test_a_broken_animation_is_counted(tmp_path):
    clips = packages(tmp_path / "node_modules") / "@lobehub/fluent-emoji-anim-1/assets"
    data = (clips / "1f600.webp").read_bytes()
    (clips / "1f600.webp").write_bytes(data[:60] + bytes(len(data) - 60))
    with pytest.raises(DataBudgetError, match=r"1f600\.webp: cannot be made into a video"):
        animoji(tmp_path)
    assert list(animoji(tmp_path, "bad_pictures=1").bad) == ["1f600"]
    assert everywhere(tmp_path / "out", "video")["1f600"] is None


def test_what_is_missing_is_named(tmp_path):
    node = packages(tmp_path / "node_modules")
    with pytest.raises(ConfigError, match=r"no names in 'tlh'; it has en, es"):
        animoji(tmp_path, "languages=[en,tlh]")
    with pytest.raises(ConfigError, match="en must be among them"):
        animoji(tmp_path, "languages=[es]")
    with pytest.raises(
        ConfigError, match=r"anim-2 is not there; `npm install --prefix \. @lobehub/fluent-emoji-anim-2@1\.0\.0`"
    ):
        animoji(tmp_path, "packages=[1,2]")
    for path in (node / "@lobehub/fluent-emoji-anim-1/assets").glob("*.webp"):
        path.unlink()
    with pytest.raises(DataError, match="no animated"):
        animoji(tmp_path)


@pytest.fixture
def fake_npm(tmp_path, monkeypatch):
    """An npm whose `pack` gives the archive tmp_path/package.tgz, and counts how often."""
    monkeypatch.setenv("CCR_DIST_CACHE", str(tmp_path / "cache"))
    script = tmp_path / "bin/npm"
    script.parent.mkdir()
    script.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\ncp {tmp_path}/package.tgz . || {{ echo "E404 not found" >&2; exit 1;'
        " }\n"
    )
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")

    def archive(files: dict[str, Any]) -> None:
        folder = write(tmp_path / "archive", {f"package/{name}": content for name, content in files.items()})
        with tarfile.open(tmp_path / "package.tgz", "w:gz") as tar:
            tar.add(folder / "package", "package")

    return archive


def test_packages_are_fetched_once(tmp_path, fake_npm):
    fake_npm({"data/a.json": {"b": 1}})
    for _ in range(2):
        folder = npm.unpacked("@who/what@1.0.0", instead="do without")
        assert json.loads((folder / "data/a.json").read_text()) == {"b": 1}
    assert (tmp_path / "asked").read_text().splitlines() == ["pack @who/what@1.0.0 --silent --ignore-scripts"]
    assert [path.name for path in (tmp_path / "cache/npm").iterdir()] == ["who-what@1.0.0"]


def test_a_package_that_cannot_be_had(tmp_path, fake_npm, monkeypatch):
    with pytest.raises(ConfigError, match=r"(?s)`npm pack what@1` failed: .*E404 not found; try again, or do without"):
        npm.unpacked("what@1", instead="or do without")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(
        ConfigError, match="npm is not installed, and what@1 comes from its registry; install npm, or do without"
    ):
        npm.unpacked("what@1", instead="or do without")
    assert list((tmp_path / "cache/npm").iterdir()) == []


def test_openmojis_keywords_come_from_its_package(fake_npm):
    fake_npm({"data/openmoji.json": [{"hexcode": "1F600"}]})
    assert json.loads(fetch_keywords().read_text()) == [{"hexcode": "1F600"}]


ITEMS = [
    *("1007129816.jpg", "1009434119.jpg", "97234558.jpg"),
    *(f"COCO_val2014_{n:012d}.jpg" for n in range(100, 140)),
]


def iglue(root: Path, *, translated: tuple[str, ...] = ("es",)) -> Path:
    """annotations/ as in e-bug/iglue; ids of COCO are numbers there, those of Flickr30K strings."""

    def records(text: str) -> list[dict[str, Any]]:
        return [
            {"sentences": [f"{text} {n}"], "id": n if name.startswith("COCO") else name.split(".")[0], "img_path": name}
            for n, name in enumerate(ITEMS)
        ]

    files: dict[str, Any] = {
        f"annotations/{x}/test.jsonl": records(x) for x in ("en", "de", "es", "id", "ja", "ru", "tr", "zh")
    }
    files |= {f"annotations_machine-translate/{x}/test_gmt.jsonl": records(f"of {x}") for x in translated}
    return write(root, files)


def test_xflickrco_is_val_and_test_drawn_by_the_item(tmp_path):
    summary = build(
        load_recipe("xflickrco", [f"folder={iglue(tmp_path / 'in')}"]), tmp_path / "out", workers=0, progress=False
    )
    assert (
        set(summary.rows) == {"val", "test"}
        and sum(summary.rows.values()) == len(ITEMS)
        and verify(tmp_path / "out", progress=False) == []
    )
    captions = everywhere(tmp_path / "out", "caption.es")
    assert captions == {Path(name).stem: [f"es {n}"] for n, name in enumerate(ITEMS)}
    for split in ("val", "test"):
        keys = column(tmp_path / "out" / split, "caption.en")
        assert keys and all((split_of(f"{key}", test=0, val=25) == "val") == (split == "val") for key in keys)
    assert everywhere(tmp_path / "out", "caption.en.google-es")["1007129816"] == ["of es 0"]
    assert "6 optional files are not there" in "; ".join(summary.notes)


def test_xflickrco_says_what_to_fetch(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(ConfigError, match=r"(?s)8 of the files.*annotations/en/test\.jsonl.*github\.com/e-bug/iglue"):
        build(load_recipe("xflickrco", [f"folder={tmp_path / 'in'}"]), tmp_path / "out", workers=0, progress=False)
    wrong = iglue(tmp_path / "in", translated=("es",))
    name = wrong / "annotations_machine-translate/es/test_gmt.jsonl"
    lines = name.read_text().splitlines()
    name.write_text("\n".join([json.dumps(json.loads(lines[0]) | {"sentences": ["one", "two"]}), *lines[1:]]))
    with pytest.raises(DataBudgetError, match=r"caption\.en\.google-es: the translations of 1 items do not match"):
        build(load_recipe("xflickrco", [f"folder={wrong}"]), tmp_path / "out", workers=0, progress=False)

"""wesnoth: units of a game with human descriptions in many languages; Debian packages; WML."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ccr_dist.data.corpora.build import BuildSummary, build
from ccr_dist.data.corpora.formats.wml import Text, blocks
from ccr_dist.data.corpora.recipes.base import load_recipe
from ccr_dist.data.corpora.recipes.debian import package_files
from ccr_dist.data.corpora.recipes.wesnoth import INSIDE, PACKAGE
from ccr_dist.data.media.decode import decode_image
from ccr_dist.data.table.dataset import open_all
from ccr_dist.data.table.splits import split_of
from ccr_dist.data.table.verify import verify
from ccr_dist.errors import ConfigError, DataError
from tests.debian import deb, mo

ARCHER = 'Archers hide in the ""old"" forest,\nand shoot from there.'
ARCHER_EN = 'Archers hide in the "old" forest,\nand shoot from there.'
MAGE, WOLF, HORSE = "A mage wears a red robe.", "Wolves hunt in packs.", "A horse runs."
FILES = {
    "elves/Archer.cfg": f"""\
#textdomain wesnoth-units
#define PATH_TEMP
units/elves/#enddef
#define WITH X
[unit_type]
    id=not this
[/unit_type]
#enddef
[unit_type]
    id=Elvish Archer
    name= _ "female^Elvish Archer" # wmllint: no
    image="{{PATH_TEMP}}archer.png~RC(magenta>red)"
    profile="portraits/archer.png~RIGHT()"
    description= _ "{ARCHER}"
    [attack]
        description=_"bow"
        image="attacks/bow.png"
    [/attack]
    {{DEFENSE_ANIM "units/x.png" {{SOUND:HIT}} }}
[/unit_type]
""",
    "humans/Mage.cfg": f"""\
#textdomain wesnoth-units
[unit_type]
    id=Mage
    name=_"Mage"
    image="units/mage.png"
    profile="portraits/mage.png"
    description= _ "{MAGE}"
[/unit_type]
[unit_type]
    id=Arch Mage
    name=_"Arch Mage"
    image="units/none.png"
    profile="portraits/mage.png"
    description= _ "{HORSE}"
[/unit_type]
""",
    "monsters/Wolf.cfg": f"""\
#textdomain wesnoth-units
[unit_type]
    id=Wolf
    name=_"Wolf"
    image="units/wolf.png"
    description=_"{WOLF}"
[/unit_type]
[unit_type]
    id=Direwolf
    name=_"Direwolf"
    image="units/wolf.png"
    description=_"{WOLF}"
[/unit_type]
[unit_type]
    id=Nothing
    name=_"Nothing"
    description=_ ""
[/unit_type]
[unit_type]
    id=Old
    name=_"Old"
    description=_ "Obsolete."
    {{DEPRECATED_UNIT "Old" "Wolf" 1.17}}
[/unit_type]
""",
}


def game(root: Path) -> Path:
    """The data of a game with four units that count."""
    for name, text in FILES.items():
        path = root / "data/core/units" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    names = ("portraits/archer", "portraits/mage", "units/elves/archer", "units/mage", "units/wolf")
    for shade, name in enumerate(names):
        path = root / f"data/core/images/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGBA", (40, 20))
        image.paste((0, 50 * shade, 0, 255), (10, 5, 30, 15))
        image.save(path)
    german = {ARCHER_EN: "Bogenschützen lauern im „alten“ Wald.", MAGE: "Ein Magier.", WOLF: "Wölfe.", HORSE: "Ross."}
    mo(root / "locale/de/LC_MESSAGES/wesnoth-units.mo", german)
    mo(root / "locale/pt_BR/LC_MESSAGES/wesnoth-units.mo", {WOLF: "Lobos caçam\nem bandos."})
    return root


def made(source: Path, out: Path, *overrides: str) -> BuildSummary:
    options = [f"source={source}", "languages=[de,pt-BR]", "picture.format=png"]
    return build(load_recipe("wesnoth", [*options, *overrides]), out, workers=0, progress=False)


def values(out: Path, name: str) -> dict[str, Any]:
    return {
        key: dataset.column(name).value(shard, row)
        for dataset in open_all(out)
        for shard in range(len(dataset.shards))
        for row, key in enumerate(dataset.keys(shard))
    }


def test_units_have_descriptions_names_and_splits(tmp_path):
    summary = made(game(tmp_path / "in"), tmp_path / "out")
    assert verify(tmp_path / "out", progress=False) == []
    assert values(tmp_path / "out", "caption.en") == {
        "Elvish-Archer": ['Archers hide in the "old" forest, and shoot from there.'],
        "Mage": [MAGE],
        "Arch-Mage": [HORSE],
        "Wolf": [WOLF],
    }
    assert values(tmp_path / "out", "caption.de")["Elvish-Archer"] == ["Bogenschützen lauern im „alten“ Wald."]
    assert values(tmp_path / "out", "caption.pt-BR") == {
        "Elvish-Archer": None,
        "Mage": None,
        "Arch-Mage": None,
        "Wolf": ["Lobos caçam em bandos."],
    }
    concepts = values(tmp_path / "out", "label.concept")
    assert concepts["Elvish-Archer"] == "elvish archer"
    for dataset in open_all(tmp_path / "out"):
        assert all(split_of(concepts[key]) == dataset.split for key in dataset.keys(0))
    notes = "; ".join(summary.notes)
    assert "2 units without a description, or deprecated are left out: Nothing, Old" in notes
    assert "1 units with another one's description are left out: Direwolf (as Wolf)" in notes
    assert "descriptions for fewer than the 4 rows: pt-BR 1" in notes
    about = open_all(tmp_path / "out")[0].column("caption.en").provenance
    assert about["licence"] == "GPL-2.0-or-later" and "only partly visual" in about["note"]


def shades(out: Path) -> dict[str, int | None]:
    """Twentieths of the green in the middle of each picture: the number of the file that it was made from."""
    found = {}
    for key, data in values(out, "image").items():
        pixel = None if data is None else decode_image(data).getpixel((112, 112))
        found[key] = None if pixel is None else round(pixel[1] / 50)
    return found


def test_no_picture_belongs_to_two_units(tmp_path):
    """The mage's portrait goes to the unit that is named like it; the other one has no sprite either."""
    source = game(tmp_path / "in")
    summary = made(source, tmp_path / "out")
    # Two units of one file are both named like the portrait.
    assert shades(tmp_path / "out") == {"Elvish-Archer": 0, "Mage": 3, "Arch-Mage": None, "Wolf": 4}
    assert "pictures: 1 portraits, 2 sprites, 1 units without" in summary.notes
    assert values(tmp_path / "out", "label.picture")["Mage"] == "sprite"
    units = source / "data/core/units/humans"
    first, second = (units / "Mage.cfg").read_text().split("[/unit_type]\n")[:2]
    (units / "Mage.cfg").write_text(first + "[/unit_type]\n")
    (units / "Arch_Mage.cfg").write_text("#textdomain wesnoth-units\n" + second + "[/unit_type]\n")
    made(source, tmp_path / "named")
    assert shades(tmp_path / "named") == {"Elvish-Archer": 0, "Mage": 1, "Arch-Mage": None, "Wolf": 4}
    made(source, tmp_path / "sprites", "pictures=sprites")
    assert shades(tmp_path / "sprites") == {"Elvish-Archer": 2, "Mage": 3, "Arch-Mage": None, "Wolf": 4}
    made(source, tmp_path / "portraits", "pictures=portraits")
    assert shades(tmp_path / "portraits") == {"Elvish-Archer": 0, "Mage": 1, "Arch-Mage": None, "Wolf": None}


def test_a_picture_may_belong_to_all_units_that_the_game_shows_by_it(tmp_path):
    """Then all units are in one split, and a label says which of them look alike."""
    source = game(tmp_path / "in")
    summary = made(source, tmp_path / "out", "shared=all", "split=test")
    assert shades(tmp_path / "out") == {"Elvish-Archer": 0, "Mage": 1, "Arch-Mage": 1, "Wolf": 4}
    shown = values(tmp_path / "out", "label.shown")
    assert shown["Mage"] == shown["Arch-Mage"] == "data/core/images/portraits/mage.png"
    assert len(set(shown.values())) == 3
    assert [dataset.split for dataset in open_all(tmp_path / "out")] == ["test"]
    assert "1 units show a picture of another one" in summary.notes
    with pytest.raises(ConfigError, match="shared: all would put one picture into several splits; set `split: test`"):
        made(source, tmp_path / "no", "shared=all")
    made(source, tmp_path / "plain")
    assert all("label.shown" not in dataset.columns() for dataset in open_all(tmp_path / "plain"))


def test_what_is_wrong_is_named(tmp_path):
    source = game(tmp_path / "in")
    with pytest.raises(ConfigError, match=r"no translations into xx; it has de, pt-BR"):
        made(source, tmp_path / "out", "languages=[xx]")
    (source / "locale/de/LC_MESSAGES/wesnoth-units.mo").write_bytes(b"\xde\x12\x04\x95" + bytes([9] * 40))
    with pytest.raises(DataError, match=r"wesnoth-units\.mo: not a file of translations"):
        made(source, tmp_path / "out")
    (source / "data/core/units/elves/Archer.cfg").write_text("[unit_type]\n[attack]\n[/unit_type]\n")
    with pytest.raises(DataError, match=r"Archer\.cfg:3: \[/unit_type\], but \[attack\] of line 2 is open"):
        made(source, tmp_path / "out")
    with pytest.raises(DataError, match="no units there"):
        made(tmp_path, tmp_path / "out")


def test_wml():
    inner = "[b]\nx=inner\n[/b]\n"
    text = f'[a]\nx=one two\ny="1" +\n"2"\nz=_"t"+"u"\nx=second\n{inner}w=<<raw "q">> # c\n[/a]\n[c]\n[/c]\n'
    (block,) = blocks(text, "a", "f")
    assert block.values == {"x": Text("one two"), "y": Text("12"), "z": Text("tu"), "w": Text('raw "q"')}
    with pytest.raises(DataError, match=r"f:1: \[a\] is not closed"):
        list(blocks("[a]\n", "a", "f"))
    with pytest.raises(DataError, match=r"f:2: \[/a\], but no block is open"):
        list(blocks("x=1\n[/a]\n", "a", "f"))


needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs dpkg-deb")


@needs_dpkg
def test_the_package_is_unpacked_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CCR_DIST_CACHE", str(tmp_path / "cache"))
    game(tmp_path / "root" / INSIDE)
    path = deb(tmp_path / "root", PACKAGE, "1.16.9", tmp_path)
    made(path, tmp_path / "out")
    assert open_all(tmp_path / "out")[0].column("image").provenance["version"] == "1.16.9"
    there = tmp_path / "cache/debian" / f"{PACKAGE}-1.16.9"
    assert package_files(PACKAGE, INSIDE, str(path)) == (there / INSIDE, "1.16.9")
    assert package_files(PACKAGE, INSIDE, str(tmp_path / "root")) == (
        tmp_path / "root" / INSIDE,
        "unknown (given folder)",
    )
    with pytest.raises(ConfigError, match=f"is the package {PACKAGE}; expected other"):
        package_files("other", INSIDE, str(path))
    with pytest.raises(ConfigError, match="has no folder /usr/elsewhere"):
        package_files(PACKAGE, "usr/elsewhere", str(path))
    with pytest.raises(ConfigError, match=r"neither a folder nor a \.deb"):
        package_files(PACKAGE, INSIDE, str(tmp_path / "missing"))


@needs_dpkg
def test_the_package_is_fetched_once(tmp_path, monkeypatch):
    monkeypatch.setenv("CCR_DIST_CACHE", str(tmp_path / "cache"))
    (tmp_path / "root/usr/share/words").mkdir(parents=True)
    deb(tmp_path / "root", "words-of-a-test", "1", tmp_path)
    script = tmp_path / "bin/apt-get"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/asked\ncp {tmp_path}/"$2"_*.deb . 2>/dev/null || exit 100\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
    for _ in range(2):
        folder, version = package_files("words-of-a-test", "usr/share/words", None)
        assert folder.is_dir() and version == "1"
    assert (tmp_path / "asked").read_text().splitlines() == ["download words-of-a-test"]
    with pytest.raises(ConfigError, match=r"`apt-get download nothing-here` failed.*apt-get update"):
        package_files("nothing-here", "usr/share/nothing", None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"set source=FILE\.deb"):
        package_files("nothing-here", "usr/share/nothing", None)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs Debian's package, by apt-get")
def test_the_real_package(tmp_path):
    """Fetches 146 MB unless the package is installed or in the cache."""
    summary = build(load_recipe("wesnoth"), tmp_path / "out", progress=False)
    assert sum(summary.rows.values()) > 250 and verify(tmp_path / "out", progress=False) == []
    assert not summary.bad and not any("fewer than" in note for note in summary.notes)
    pictures = [data for data in values(tmp_path / "out", "image").values() if data is not None]
    assert len(pictures) > 250 and len(set(pictures)) == len(pictures)
    words = [len(text[0].split()) for text in values(tmp_path / "out", "caption.en").values()]
    assert 70 < sum(words) / len(words) < 90

"""Published datasets in their own formats become datasets: the right captions at the right pictures, in the right
splits.

The files are tiny and made in the exact formats (`tests/published.py`); pictures and videos are stand-ins.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from ccr_dist.data.cli import shards_app
from ccr_dist.data.corpora.build import BuildSummary, build
from ccr_dist.data.corpora.recipes.base import load_recipe, shipped
from ccr_dist.data.table.dataset import Dataset
from ccr_dist.data.table.verify import verify
from ccr_dist.errors import ConfigError, DataBudgetError, DataError
from tests.published import VIDEO, coco, karpathy, media, multi30k, nrccr, write


def do(name: str, tmp_path: Path, *overrides: str, out: str = "out") -> BuildSummary:
    recipe = load_recipe(name, [f"folder={tmp_path / 'in'}", f"media=[{tmp_path / 'media'}]", *overrides])
    return build(recipe, tmp_path / out, workers=0, progress=False)


def column(root: Path, name: str) -> dict[str, Any]:
    """{key: value} of a split's column; {} where the split has no such column."""
    dataset = Dataset(root)
    if name not in dataset.columns():
        return {}
    return {
        key: dataset.column(name).value(s, r)
        for s in range(len(dataset.shards))
        for r, key in enumerate(dataset.keys(s))
    }


def test_multi30k(tmp_path: Path) -> None:
    write(tmp_path / "in", multi30k())
    media(tmp_path / "media", "32.jpg", "31.jpg", "21.jpg", "sub/12.jpg", "11.jpg", "99.jpg")
    summary = do("multi30k", tmp_path)
    assert summary.rows == {"train": 2, "val": 1, "test": 2} and verify(tmp_path / "out", progress=False) == []
    assert column(tmp_path / "out/test", "caption.cs") == {"31": ["cs 31, one."], "32": ["cs 32, one."]}
    pictures = column(tmp_path / "out/test", "image") | column(tmp_path / "out/train", "image")
    assert {key: data for key, data in pictures.items()} == {
        "31": (tmp_path / "media/31.jpg").read_bytes(),
        "32": (tmp_path / "media/32.jpg").read_bytes(),
        "11": (tmp_path / "media/11.jpg").read_bytes(),
        "12": (tmp_path / "media/sub/12.jpg").read_bytes(),
    }
    assert len(set(pictures.values())) == 4
    again = do("multi30k", tmp_path, "languages=[en,de]")  # fewer languages: the same rows, nothing to do
    assert again.built == 0 and again.rows == summary.rows
    other = write(
        tmp_path / "in",
        {"image_splits/test_2017_flickr.txt": ["41.jpg"]} | {f"raw/test_2017_flickr.{x}": [x] for x in ("en", "de")},
    )
    media(tmp_path / "media", "41.jpg")
    do("multi30k", tmp_path, "variables.test=test_2017_flickr", "languages=[en,de]", "only=[test]", out="2017")
    assert (
        other
        and column(tmp_path / "2017/test", "caption.de") == {"41": ["de"]}
        and not (tmp_path / "2017/train").exists()
    )


def test_multi30k_task2_takes_five_captions_in_order(tmp_path: Path) -> None:
    ids = {"train": ["11.jpg", "12.jpg"], "val": ["21.jpg"], "test_2016": ["31.jpg"]}
    lists = {
        "train": "task2/image_splits/train_images",
        "val": "task1/image_splits/val",
        "test_2016": "task1/image_splits/test_2016_flickr",
    }
    files: dict[str, Any] = {f"{lists[stem]}.txt": names for stem, names in ids.items()}
    files |= {
        f"task2/raw/{s}.{n}.{x}.gz": [f"{x}{n} {i[:2]}" for i in names]
        for s, names in ids.items()
        for n in range(1, 6)
        for x in ("en", "de")
    }
    files |= {f"task1/raw/{s}.{x}.gz": [f"{x} one"] for s in ("val", "test_2016_flickr") for x in ("fr", "cs")}
    write(tmp_path / "in", files)
    media(tmp_path / "media", "11.jpg", "12.jpg", "21.jpg", "31.jpg")
    do("multi30k-task2", tmp_path)
    assert column(tmp_path / "out/train", "caption.en")["12"] == [f"en{n} 12" for n in range(1, 6)]
    assert column(tmp_path / "out/test", "caption.fr") == {"31": ["fr one"]} and not column(
        tmp_path / "out/train", "caption.fr"
    )


def test_flickr30k_with_dutch(tmp_path: Path) -> None:
    dutch = [
        "een man met bril in een grijs t-shirt met een grappig ornaje hoedje op.",
        "man met opvallende bril en zeer apart oranje hoedje.",
    ]
    files: dict[str, Any] = {f"splits/{split}_images.txt": [f"{split}1.jpg"] for split in ("train", "val", "test")}
    for folder, stem in (("English", "{}"), ("German", "de_{}")):
        for split in ("train", "val", "test"):
            files |= {f"{folder}/{split.capitalize()}/{stem.format(split)}.{n}": [f"{folder} {n}"] for n in range(1, 6)}
    for split in ("val", "test"):
        files |= {f"Dutch/{split.capitalize()}/{split}.{n}": [dutch[n % 2]] for n in range(5)}
    write(tmp_path / "in", files | {"French/Train/train.fr": ["Deux jeunes hommes."]})
    media(tmp_path / "media", "train1.jpg", "val1.jpg", "test1.jpg")
    summary = do("flickr30k", tmp_path)
    assert column(tmp_path / "out/test", "caption.nl") == {"test1": [*dutch, *dutch, dutch[0]]}
    assert column(tmp_path / "out/train", "caption.de") == {"train1": [f"German {n}" for n in range(1, 6)]}
    assert any("1 optional files are not there: French/Val/val.fr" in note for note in summary.notes)


def coco_files(tmp_path: Path) -> None:
    """1, 2, 3, 4: Karpathy train (2 is in COCO-CN's test, 3 in its val); 5: restval; 6: Karpathy val; 7, 8: Karpathy
    test.
    """
    items = [
        ("train", 1, "train"),
        ("train", 2, "train"),
        ("train", 3, "train"),
        ("train", 4, "train"),
        ("val", 5, "restval"),
    ]
    items += [("val", 6, "val"), ("val", 7, "test"), ("val", 8, "test")]
    stair = {
        part: [{"image_id": n, "id": 90 + n, "caption": f"日本語{n}"} for p, n, _ in items if p == part]
        for part in ("train", "val")
    }
    cn = "coco-cn-version1805v1.1"
    chinese = [f"{coco('train', n)}#0\t中文{n}" for n in (1, 2, 3)] + [f"{coco('train', 2)}#1\t中文二"]
    files: dict[str, Any] = {
        "dataset_coco.json": karpathy(*items),
        f"{cn}/coco-cn_val.txt": [coco("train", 3)],
        f"{cn}/coco-cn_test.txt": [coco("train", 2)],
        f"{cn}/imageid.human-written-caption.txt": chinese,
    }
    files |= {f"stair_captions_v1.2_{part}.json": {"images": [], "annotations": found} for part, found in stair.items()}
    write(tmp_path / "in", files)
    media(tmp_path / "media", *(f"{part}2014/{coco(part, n)}.jpg" for part, n, _ in items))


def test_mscoco_holds_out_the_pictures_of_both_languages(tmp_path: Path) -> None:
    coco_files(tmp_path)
    summary = do("mscoco-zh", tmp_path)
    do("mscoco-ja", tmp_path, "splits.test.first=1", out="ja")
    for out in ("out", "ja"):  # the same train, without 2 and 3 (COCO-CN's) and 6, 7, 8 (Karpathy's)
        assert column(tmp_path / out / "train", "caption.en") == {
            str(n): [f"One English {n}.", f"Two English {n}."] for n in (1, 4, 5)
        }
        assert not column(tmp_path / out / "train", "caption.zh")
    assert any(note.startswith("train: 2 of 5 items are held out") and "2, 3" in note for note in summary.notes)
    assert column(tmp_path / "out/test", "caption.zh") == {"2": ["中文2", "中文二"]}
    assert column(tmp_path / "out/val", "caption.zh") == {"3": ["中文3"]}
    assert column(tmp_path / "ja/test", "caption.ja") == {"7": ["日本語7"]}
    assert column(tmp_path / "ja/val", "caption.ja") == {"6": ["日本語6"]}
    assert (
        column(tmp_path / "ja/test", "image")["7"]
        == (tmp_path / "media/val2014" / f"{coco('val', 7)}.jpg").read_bytes()
    )


def vatex_files(tmp_path: Path) -> None:
    names = {
        "train": ["Ptf_2VRj-V0_000122_000132", "-Abc_0_10"],
        "validation": ["v1_000000_000010", "v2_000000_000010"],
    }
    entries = {
        part: [
            {
                "videoID": name,
                "enCap": [f"en {name} {i}" for i in range(2)],
                "chCap": [f"中 {name} {i}" for i in range(2)],
            }
            for name in found
        ]
        for part, found in names.items()
    }
    write(
        tmp_path / "in",
        {
            "vatex_training_v1.0.json": entries["train"],
            "vatex_validation_v1.0.json": entries["validation"],
            "video_id/val_id.txt": [names["validation"][1]],
            "video_id/test_id.txt": [names["validation"][0]],
            "TextData/vatextrain_google_enc2zh.caption.txt": [
                f"{name}#enc2zh#{i} 机 {i}" for name in names["train"] for i in (0, 1)
            ],
        },
    )
    media(tmp_path / "media", *(f"{name}.mp4" for found in names.values() for name in found))


def test_vatex_is_of_videos(tmp_path: Path) -> None:
    vatex_files(tmp_path)
    do("vatex", tmp_path)
    train = Dataset(tmp_path / "out/train")
    assert train.column("video").kind == "video" and column(train.root, "video") == dict.fromkeys(train.keys(0), VIDEO)
    assert column(train.root, "caption.zh.google")["-Abc_0_10"] == ["机 0", "机 1"] and not column(
        train.root, "caption.zh"
    )
    assert column(tmp_path / "out/test", "caption.zh") == {
        "v1_000000_000010": ["中 v1_000000_000010 0", "中 v1_000000_000010 1"]
    }
    (tmp_path / "media/v2_000000_000010.mp4").write_bytes(b"<html>gone</html>")
    with pytest.raises(DataError, match=r"v2_000000_000010.*not an MP4"):
        do("vatex", tmp_path, out="broken")


def test_msrvtt_cn(tmp_path: Path) -> None:
    info = {
        "videos": [{"video_id": "video8", "split": "test"}],
        "sentences": [{"video_id": "video8", "sen_id": 0, "caption": "a man"}],
    }
    write(
        tmp_path / "in",
        {
            "TextData/msrvtt10kcntrain.caption.txt": ["video0#enc#0 a cartoon", "video0#enc#1 cartoons"],
            "TextData/msrvtt10kcntrain_google_enc2zh.caption.txt": ["video0#enc2zh#0 卡通", "video0#enc2zh#1 动画"],
            "TextData/msrvtt10kcnval_zh.caption.txt": ["video7#zh#0 狗"],
            "TextData/msrvtt10kcntest_zh.caption.txt": ["video8#zh#0 男人"],
            "test_videodatainfo.json": info,
            "descriptions/video0.txt": "The video shows\na cartoon.\n",
        },
    )
    media(tmp_path / "media", "video0.mp4", "video7.mp4", "video8.mp4")
    do("msrvtt-cn", tmp_path)
    assert column(tmp_path / "out/train", "caption.zh.google") == {"video0": ["卡通", "动画"]}
    assert column(tmp_path / "out/test", "caption.zh") == {"video8": ["男人"]} and column(
        tmp_path / "out/test", "caption.en"
    ) == {"video8": ["a man"]}
    assert column(tmp_path / "out/train", "description.videochat2") == {
        "video0": {"views": {"detail": "The video shows\na cartoon."}}
    }


def test_xtd10_and_xm3600_are_test_sets(tmp_path: Path) -> None:
    names = [f"{coco('train', n)}.jpg" for n in (61844, 9)]
    folders = (
        dict.fromkeys(("es", "it", "ko", "pl", "ru", "tr", "zh"), "XTD10")
        | dict.fromkeys(("en", "de", "fr"), "MIC")
        | {"jp": "STAIR"}
    )
    files: dict[str, Any] = {f"{folder}/test_1kcaptions_{x}.txt": [f"{x} 1", f"{x} 2"] for x, folder in folders.items()}
    write(tmp_path / "in", files | {"XTD10/test_image_names.txt": names})
    media(tmp_path / "media", *names)
    assert do("xtd10", tmp_path, out="xtd").rows == {"test": 2}
    assert column(tmp_path / "xtd/test", "caption.ja") == {"61844": ["jp 1"], "9": ["jp 2"]}

    yaml = shipped()["xm3600"].read_text()
    languages = yaml[yaml.index("[ar") + 1 : yaml.index("zh]") + 2].replace('"', "").split(",")
    spoken = {
        x.strip(): {"caption": [f"{x.strip()} a", f"{x.strip()} b"], "caption/tokenized": ["t"]} for x in languages
    }
    assert len(spoken) == 36
    write(tmp_path / "in", {"captions.jsonl": [{"image/key": "000411001ff7dd4f", "image/locale": "quz", **spoken}]})
    media(tmp_path / "media", "000411001ff7dd4f.jpg")
    assert do("xm3600", tmp_path, out="xm").rows == {"test": 1}
    assert column(tmp_path / "xm/test", "caption.no") == {"000411001ff7dd4f": ["no a", "no b"]}


def cc_files(tmp_path: Path) -> None:
    names = [f"{n:08d}.jpg" for n in (12, 7, 3, 40)]
    captions = {x: {name: [f"{x} {name[:8]}"] for name in names} for x in ("en", "de", "fr", "cs", "zh", "ja")}
    write(
        tmp_path / "in",
        {"shuffled_names.npy": names} | {f"jsons/ref_captions_{x}.json": found for x, found in captions.items()},
    )


def test_cc300k_takes_the_first_whose_pictures_are_there(tmp_path: Path) -> None:
    cc_files(tmp_path)
    media(tmp_path / "media", "00000012.jpg", "00000003.jpg", "00000040.jpg")  # 7 is gone from the web
    summary = do("cc300k", tmp_path, "splits.train.first_with_media=2")
    assert column(tmp_path / "out/train", "caption.ja.uc2") == {"12": ["ja 00000012"], "3": ["ja 00000003"]}
    assert any("1 of 4 items have no image" in note and ": 7" in note for note in summary.notes)


def test_pictures_come_out_of_tars(tmp_path: Path) -> None:
    cc_files(tmp_path)
    media(tmp_path / "loose", "000000012.jpg", "000000007.jpg", "000000003.png", "000000040.jpg", "000000099.jpg")
    (tmp_path / "loose/000000012.txt").write_text("en 00000012")
    for i, names in enumerate(
        (("000000012.jpg", "000000012.txt", "000000099.jpg"), ("000000007.jpg", "000000003.png", "000000040.jpg"))
    ):
        with tarfile.open(tmp_path / f"0000{i}.tar", "w") as tar:
            for name in names:
                tar.add(tmp_path / "loose" / name, name)
    do("cc300k", tmp_path, f"media=['{tmp_path}/{{00000..00001}}.tar']")
    images = column(tmp_path / "out/train", "image")
    assert list(images) == ["12", "7", "3", "40"] and images["3"] == (tmp_path / "loose/000000003.png").read_bytes()
    assert images["7"] == (tmp_path / "loose/000000007.jpg").read_bytes()


def test_tars_whose_own_captions_are_other_ones_are_refused(tmp_path: Path) -> None:
    cc_files(tmp_path)
    media(tmp_path / "loose", "000000012.jpg", "000000007.jpg")
    (tmp_path / "loose/000000012.txt").write_text("EN, 00000012.")  # the same but for case and marks
    (tmp_path / "loose/000000007.txt").write_text("en 00000007")
    with tarfile.open(tmp_path / "right.tar", "w") as tar:
        tar.add(tmp_path / "loose", "")
    summary = do("cc300k", tmp_path, f"media=['{tmp_path}/right.tar']")
    assert "2 of 2 captions that were compared with the tars' own are the same" in summary.notes
    for key, said in (("000000012", "a dog on a sofa"), ("000000007", "a harbour at night")):
        (tmp_path / f"loose/{key}.txt").write_text(said)
    with tarfile.open(tmp_path / "wrong.tar", "w") as tar:
        tar.add(tmp_path / "loose", "")
    with pytest.raises(DataError, match=r"of 2 captions in the tars only 0 .*(12|7): .* in .*wrong.tar"):
        do("cc300k", tmp_path, f"media=['{tmp_path}/wrong.tar']", out="wrong")


def test_nrccr_pairs_translations_by_their_numbers(tmp_path: Path) -> None:
    write(tmp_path / "in", nrccr())
    media(tmp_path / "media", "11.jpg", "12.jpg", "21.jpg", "31.jpg")
    do("nrccr", tmp_path)
    assert column(tmp_path / "out/train", "caption.en")["12"] == ["A cat.", "Cats  sleep."]
    assert column(tmp_path / "out/train", "caption.de.google")["12"] == ["Eine Katze.", "Katzen schlafen."]
    assert column(tmp_path / "out/test", "caption.de") == {"31": ["Ein Ball.", "Bälle."]}


@pytest.mark.parametrize("lost", ["12#enc2de#0 Eine Katze.", "12#enc2de#0 "])
def test_captions_without_their_translation_are_bounded(tmp_path: Path, lost: str) -> None:
    files = nrccr()
    name = "TextData/Flickr30ktrain_google_enc2de.caption.txt"
    files[name] = [line for line in files[name] if line != "12#enc2de#0 Eine Katze."] + (
        [lost] if lost.endswith("#0 ") else []
    )
    write(tmp_path / "in", files)
    media(tmp_path / "media", "11.jpg", "12.jpg", "21.jpg", "31.jpg")
    with pytest.raises(
        DataBudgetError, match=r"caption\.de\.google: .* 1 items .*unaligned=0.*12 \(2 captions, 1 translations\)"
    ):
        do("nrccr", tmp_path)
    summary = do("nrccr", tmp_path, "unaligned=1")
    assert column(tmp_path / "out/train", "caption.de.google") == {"11": ["Ein Hund rennt.", "Der Hund."], "12": None}
    assert any("caption.de.google: 1 of 2 train rows have it" in note for note in summary.notes)


def test_mla(tmp_path: Path) -> None:
    parts = {"train": ["11.jpg"], "val": ["21.jpg"], "test_2016": ["31.jpg"]}
    files: dict[str, Any] = {f"task2/public_split/{part}.npy": names for part, names in parts.items()}
    files |= {
        f"task2/annotation/{p}_{x}.json": {n: [f"{x} a", f"{x} b"] for n in names}
        for p, names in parts.items()
        for x in ("en", "de")
    }
    files |= {
        f"task1/annotation/{p}_{x}.json": {n: [x]}
        for p, n in (("val", "21.jpg"), ("test_2016_flickr", "31.jpg"))
        for x in ("fr", "cs")
    }
    write(tmp_path / "in", files)
    media(tmp_path / "media", "11.jpg", "21.jpg", "31.jpg")
    do("mla", tmp_path)
    assert column(tmp_path / "out/test", "caption.de") == {"31": ["de a", "de b"]} and column(
        tmp_path / "out/val", "caption.cs"
    ) == {"21": ["cs"]}
    assert not column(tmp_path / "out/train", "caption.de")


def test_all_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    files = multi30k()
    del files["raw/val.fr.gz"], files["image_splits/train.txt"]
    write(tmp_path / "in", files)
    with pytest.raises(
        ConfigError, match=r"(?s)3 of the files.*image_splits/train\.txt.*raw/val\.fr\.gz.*media \(media\).*git clone"
    ) as error:
        do("multi30k", tmp_path)
    assert "raw/val.de.gz" not in str(error.value)
    text = CliRunner().invoke(shards_app, ["recipes", "multi30k", f"folder={tmp_path / 'in'}"]).output
    assert (
        "fetch: captions: git clone" in text
        and "raw/test_2016_flickr.cs.gz" in text
        and "media=flickr30k-images" in text
    )
    listing = CliRunner().invoke(shards_app, ["recipes"]).output
    assert all(name in listing for name in shipped())


def test_pictures_that_are_missing_are_named_or_left_out(tmp_path: Path) -> None:
    write(tmp_path / "in", multi30k())
    media(tmp_path / "media", "11.jpg", "21.jpg", "31.jpg")
    with pytest.raises(DataError, match=r"(?s)2 of 5 items have no image in .*: 12, 32.*12\.jpg.*missing=skip"):
        do("multi30k", tmp_path)
    assert do("multi30k", tmp_path, "missing=skip").rows == {"train": 1, "val": 1, "test": 1}
    media(tmp_path / "media", "b/31.jpg", "12.jpg", "32.jpg")
    with pytest.raises(DataError, match=r"two files belong to the item '31'"):
        do("multi30k", tmp_path, out="two")


def test_without_media_there_are_texts_only(tmp_path: Path) -> None:
    write(tmp_path / "in", multi30k())
    do("multi30k", tmp_path, "media=null", "limit=1")
    dataset = Dataset(tmp_path / "out/test")
    assert dataset.columns() == [f"caption.{x}" for x in ("cs", "de", "en", "fr")] and dataset.rows == 1


def test_other_files_are_another_build(tmp_path: Path) -> None:
    write(tmp_path / "in", multi30k())
    media(tmp_path / "media", "11.jpg", "12.jpg", "21.jpg", "31.jpg", "32.jpg")
    do("multi30k", tmp_path)
    write(tmp_path / "in", {"raw/val.de.gz": ["Anders."]})
    with pytest.raises(DataError, match=r"caption\.de.*another plan"):
        do("multi30k", tmp_path)
    write(tmp_path / "in", multi30k())
    media(tmp_path / "media", "12.jpg")  # another picture
    with pytest.raises(DataError, match=r"rows\.items"):
        do("multi30k", tmp_path)


@pytest.mark.parametrize(
    ("changed", "overrides", "message"),
    [
        ({"image_splits/val.txt": ["31.jpg"]}, [], r"1 items are in val and in test: 31"),
        ({"raw/train.en.gz": ["one"]}, [], r"raw/train\.en\.gz: 1 lines for the 2 items of .*train\.txt"),
        ({}, ["languages=[en,xx]"], r"none in xx; there are: cs, de, en, fr"),
        ({}, ["item=(\\d+)"], r"the id '11\.jpg' does not match the recipe's `item`"),
        ({}, ["item=\\d+"], r"expected one group"),
        ({}, ["splits.test.read.file=image_splits/{tst}.txt"], r"no such variable \('tst'\); there are: test"),
        ({}, ["captions.0.colum=x"], r"unknown key 'captions\.0\.colum'; did you mean 'column'"),
        ({}, ["captions.0.read.fil=x"], r"unknown key 'captions\.0\.read\.fil'; did you mean 'file'"),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, changed: dict[str, Any], overrides: list[str], message: str) -> None:
    write(tmp_path / "in", multi30k() | changed)
    media(tmp_path / "media", "11.jpg", "12.jpg", "21.jpg", "31.jpg", "32.jpg")
    with pytest.raises((ConfigError, DataError), match=message):
        do("multi30k", tmp_path, *overrides)


def test_files_of_another_dataset_are_noticed(tmp_path: Path) -> None:
    write(tmp_path / "in", nrccr() | {"TextData/multi30ktest_de_2016.caption.txt": ["31#fr#0 Une balle."]})
    media(tmp_path / "media", "11.jpg", "12.jpg", "21.jpg", "31.jpg")
    with pytest.raises(DataError, match=r"2016\.caption\.txt:1: expected the tag 'de', found the key '31#fr#0'"):
        do("nrccr", tmp_path)
    cc_files(tmp_path)
    write(tmp_path / "in", {"jsons/ref_captions_fr.json": {"00000099.jpg": ["x"]}})
    (tmp_path / "media/12.jpg").rename(tmp_path / "media/00000012.jpg")
    with pytest.raises(
        DataError,
        match=r"caption\.fr\.uc2: nothing in .*ref_captions_fr\.json.* is about an item of the splits, such as '12'",
    ):
        do("cc300k", tmp_path)

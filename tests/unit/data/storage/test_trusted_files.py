"""Datasets and archives that somebody else made: what they name stays inside, whatever they say; `docs/security.md` has
the whole list.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ccr_dist.data.corpora.index import index
from ccr_dist.data.corpora.recipes.npm import unpacked
from ccr_dist.data.storage import store
from ccr_dist.data.storage.tar import TarWriter
from ccr_dist.data.table.dataset import Dataset, create_column, create_dataset
from ccr_dist.data.table.names import is_column_name
from ccr_dist.data.table.verify import verify
from ccr_dist.errors import DataError


def edit(path: Path, **changes: Any) -> None:
    """As somebody would who knows how digests are made."""
    content = {**json.loads(path.read_text()), **changes}
    content.pop("digest", None)
    path.write_bytes(store.pretty_json(store.with_digest(content)))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    made = create_dataset(tmp_path / "d", name="d", split="train", keys=[["a", "b"]])
    column = create_column(made, "caption.en", kind="texts", extension="json", plan={}, provenance={})
    column.commit(0, [column.encode(["A"]), column.encode(["B"])])
    return Dataset(made.root)


@pytest.mark.parametrize(
    "url",
    [
        "{secret}",
        "../../secret.tar",
        "../caption.en/../../secret.tar",
        "../caption.en/secret",
        "{d}/../secret.tar",
        "x\n",
    ],
)
def test_records_speak_of_nothing_outside_of_the_dataset(dataset: Dataset, tmp_path: Path, url: str) -> None:
    secret = tmp_path / "secret.tar"
    secret.write_bytes((dataset.root / "caption.en/000000.tar").read_bytes())
    edit(dataset.root / "caption.en/000000.json", url=url.format(secret=secret, d=dataset.root))
    with pytest.raises(DataError, match=r"caption\.en/000000\.json: .*edited or damaged"):
        Dataset(dataset.root).column("caption.en").value(0, 0)
    assert verify(dataset.root) and verify(dataset.root, fast=True)


def test_an_indexed_column_speaks_of_its_tar_by_a_plain_absolute_path(tmp_path: Path) -> None:
    with TarWriter(tmp_path / "x.tar") as tar:
        tar.add("a.txt", b"hello")
    made = index([str(tmp_path / "x.tar")], tmp_path / "d", image=None, progress=False).dataset
    record = made.root / "caption.en/000000.json"
    assert Dataset(made.root).column("caption.en").value(0, 0) == ["hello"]
    for url in (f"{tmp_path}/d/../x.tar", f"{tmp_path}/x.tar\n", "x.tar"):
        edit(record, url=url)
        with pytest.raises(DataError, match="edited or damaged"):
            Dataset(made.root).column("caption.en").value(0, 0)
    os.mkfifo(tmp_path / "pipe.tar")
    edit(record, url=str(tmp_path / "pipe.tar"), bytes=0)
    with pytest.raises(DataError, match="not a plain file"):  # and does not wait for somebody to write into it
        Dataset(made.root).column("caption.en").value(0, 0)


@pytest.mark.parametrize("key", ["../../x", "a/../../x", "/etc/x", "..", "a\x1b[2J", "a\x00", b"a\xff"])
def test_keys_stay_below_a_folder(dataset: Dataset, key: str | bytes) -> None:
    data = b"\n".join([b"a", key if isinstance(key, bytes) else key.encode()])
    (dataset.root / "keys/000000.txt").write_bytes(data + b"\n")
    meta = json.loads((dataset.root / "dataset.json").read_text())
    meta["shards"][0]["keys"] = hashlib.sha256(data).hexdigest()
    edit(dataset.root / "dataset.json", shards=meta["shards"])
    with pytest.raises(DataError, match=r"keys/000000\.txt: a key that is not a relative path"):
        Dataset(dataset.root).keys(0)


def test_shards_are_numbers(dataset: Dataset) -> None:
    meta = json.loads((dataset.root / "dataset.json").read_text())
    edit(dataset.root / "dataset.json", shards=[{**meta["shards"][0], "id": "../../000000"}])
    with pytest.raises(DataError, match=r"shard 0 has the id '\.\./\.\./000000'"):
        Dataset(dataset.root)


def test_names_of_columns() -> None:
    assert is_column_name("caption.pt-BR.m")
    assert not any(
        map(is_column_name, ("image\n", "caption.../x", "feature.a/b", "../image", "caption.", "label.a\x1b"))
    )


@pytest.mark.parametrize("member", ["../../evil", "/tmp/evil", "link"])
def test_archives_of_packages_do_not_write_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, member: str
) -> None:
    with tarfile.open(tmp_path / "made.tgz", "w:gz") as archive:
        info = tarfile.TarInfo(f"package/{member}" if member != "/tmp/evil" else member)
        if member == "link":
            info.type, info.linkname = tarfile.SYMTYPE, "../../../../../../etc/passwd"
            archive.addfile(info)
        else:
            info.name, info.size = member, 4
            archive.addfile(info, io.BytesIO(b"evil"))
    npm = tmp_path / "bin/npm"
    npm.parent.mkdir()
    npm.write_text(f"#!/bin/sh\ncp {tmp_path}/made.tgz x.tgz\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(npm.parent), prepend=os.pathsep)
    monkeypatch.setenv("CCR_DIST_CACHE", str(tmp_path / "cache"))
    if member == "/tmp/evil":  # Python takes the slash away, as tar does
        with pytest.raises(OSError):
            unpacked("evil@1.0.0", instead="")
    else:
        with pytest.raises(DataError, match=r"x\.tgz: not the archive that was expected"):
            unpacked("evil@1.0.0", instead="")
    assert not list(tmp_path.rglob("evil")) and not Path("/tmp/evil").exists()
    assert list((tmp_path / "cache/npm").iterdir()) == []

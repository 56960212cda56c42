"""The commands of docs/start/captions.md, as they stand there, on a few pictures and tiny models in the place of the
real ones.
"""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ccr_dist.cli import app
from ccr_dist.data.table.dataset import Dataset
from tests import toy
from tests.dual_encoders import dual_folder, words
from tests.encoders import family_folder

ROOT = Path(__file__).parents[4]
PAGE = ROOT / "docs" / "start" / "captions.md"


@pytest.mark.long
def test_from_english_captions_to_an_index_in_other_languages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs" / "queries", "configs/queries")
    Path("pictures").mkdir()
    with Path("captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "caption"])
        for number, caption in enumerate(toy.ENGLISH):
            (Path("pictures") / f"{number}.png").write_bytes(toy.picture(number))
            table.writerow([f"{number}.png", caption])
    # Folders of these names, here, come before the hub.
    tower = Path("google/siglip2-base-patch16-224")
    dual_folder(tower, "siglip", tokenizer=words("", "</s>", "</s>", lower=True))
    family_folder(Path("intfloat/multilingual-e5-base"), "xlm-roberta")

    text = PAGE.read_text(encoding="utf-8")
    [block] = re.findall(r"^```bash\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    said = ""
    for line in block.splitlines():
        program, *rest = shlex.split(line)
        assert program == "ccr-dist"
        more = ["--workers", "0"] if rest[0] == "featurise" else ["runtime.workers=0"] if rest[0] == "train" else []
        json_lines = ["--json"] if rest[0] == "search" else []
        done = CliRunner().invoke(app, [*rest, *more, *json_lines])
        assert done.exit_code == 0, (line, done.output, done.exception)
        said = done.stdout
    answer = json.loads(said.splitlines()[-1])
    assert answer["lang"] == "de" and len(answer["hits"]) == 10

    rows = dict(re.findall(r"^\| `(.+?)` \| (.+) \|$", text, re.MULTILINE))
    for column, split in (("image", "val"), ("feature.siglip2-base-patch16-224.image", "val")):
        assert column in Dataset.open(Path("data/mine") / split).columns()
    columns = Dataset.open(Path("data/mine/train")).columns()
    named = set(re.findall(r"`((?:image|caption|feature)[\w.-]*)`", " ".join(rows.values())))
    assert named and named <= set(columns)
    results = json.loads(Path("runs/queries/own-s0/results/test.json").read_text())
    assert results["languages"].keys() == {"en"}

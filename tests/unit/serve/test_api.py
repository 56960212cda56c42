"""What the API answers: searching with texts and pictures, items, their pictures and what is similar to them."""

from __future__ import annotations

import asyncio
import io
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

from ccr_dist.search.index import Index
from ccr_dist.serve.api import Service
from ccr_dist.serve.limits import Limits
from ccr_dist.serve.metrics import Metrics
from ccr_dist.serve.thumbnails import Thumbnails
from tests import generation, serving
from tests.searching import dataset, encoded, half, picture, put


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return serving.fill(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[TestClient]:
    with serving.client(serving.gallery(folder), serving.gallery(folder, 1, "other")) as found:
        yield found


def number(client: TestClient, name: str) -> int:
    hits = client.get("/api/search", params={"text": "red", "k": 50}).json()["hits"]
    return next(hit["number"] for hit in hits if hit["name"] == name)


def test_what_there_is(client: TestClient) -> None:
    info = client.get("/api/info").json()
    assert [(each["index"], each["name"], each["items"]) for each in info["indexes"]] == [
        (0, "index", 7),
        (1, "other", 7),
    ]
    assert info["indexes"][0]["languages"] == ["en", "pt"] and info["indexes"][0]["model"] == "colours"


def test_texts_of_two_languages(client: TestClient) -> None:
    english = client.get("/api/search", params={"text": "yellow", "k": 3}).json()
    assert english["hits"][0]["name"] == "yellow é.png" and english["hits"][0]["rank"] == 1
    assert (english["lang"], english["detected"], english["sure"]) == ("en", True, True)
    other = client.get("/api/search", params={"text": "vermelho", "lang": "pt", "k": 1}).json()
    assert [hit["name"] for hit in other["hits"]] == ["red.png"]
    assert (other["lang"], other["detected"], other["sure"]) == ("pt", False, True)
    scores = [hit["score"] for hit in english["hits"]]
    assert scores == sorted(scores, reverse=True) and scores[0] == pytest.approx(1, abs=1e-5)


def test_what_is_not_sure_is_no_note(client: TestClient) -> None:
    found = client.get("/api/search", params={"text": "red"}).json()
    assert found["sure"] is False and found["notes"] == []
    cut = client.get("/api/search", params={"text": "a very long text, much longer than the model reads: red"})
    assert cut.status_code == 500 or cut.json()["notes"]


def test_a_label_filters(client: TestClient) -> None:
    assert serving.numbers(client, "red", where="folder=below") == ["below/blue.png"]
    wrong = client.get("/api/search", params={"text": "red", "where": "folder=nowhere"})
    assert wrong.status_code == 400 and "folder" in wrong.json()["detail"]
    assert client.get("/api/search", params={"text": "red", "where": "folder"}).status_code == 400


def test_labels_can_be_chosen(client: TestClient, tmp_path: Path) -> None:
    assert client.get("/api/labels").json() == [{"name": "folder", "values": {"": 6, "below": 1}}]
    assert client.get("/api/labels", params={"index": 2}).status_code == 404
    dataset(tmp_path / "data")
    (tmp_path / "files").mkdir()  # a source without pictures has no label
    Index.build(tmp_path / "index", serving.Seeing(), [tmp_path / "data", tmp_path / "files"], progress=False)
    with serving.client(serving.gallery(tmp_path), limits=Limits(values=1)) as asked:
        assert asked.get("/api/labels").json() == [{"name": "tone", "values": {"bright": 5}}]
        assert serving.numbers(asked, "red", where="tone=dark", k=9) == ["black", "blue"]
        found = asked.post("/api/search", params={"where": "tone=dark"}, content=encoded(picture("red"))).json()
        assert [hit["name"] for hit in found["hits"]] == ["black", "blue"]
        shutil.rmtree(tmp_path / "data")
    with serving.client(serving.gallery(tmp_path)) as asked:
        assert asked.get("/api/labels").json() == [] and serving.numbers(asked, "red", k=1)


def test_a_query_by_way_of_english(client: TestClient, folder: Path) -> None:
    assert client.get("/api/info").json()["indexes"][0]["english"] == []
    asked: dict[str, str] = {"text": "vermelho", "lang": "pt", "k": "1", "via_english": "only"}
    refused = client.get("/api/search", params=asked)
    assert refused.status_code == 400 and "no translation engine" in refused.json()["detail"]
    with serving.client(serving.gallery(folder, translate=lambda texts, lang: ["yellow"] * len(texts))) as other:
        assert other.get("/api/info").json()["indexes"][0]["english"] == ["pt"]
        found = other.get("/api/search", params=asked).json()
        assert found["hits"][0]["name"] == "yellow é.png" and found["notes"] == ["in English: yellow"]
        assert serving.numbers(other, "vermelho", lang="pt", k=1) == ["red.png"]
        assert other.get("/api/search", params={**asked, "via_english": "x"}).status_code == 422


def test_an_update_of_the_index_is_seen_by_the_next_request(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    serving.fill(tmp_path)
    pictures, index = tmp_path / "pictures", Index.open(tmp_path / "index")
    shown = serving.gallery(tmp_path)
    with serving.client(shown) as client:
        before, running = client.get("/api/info").json(), shown.searcher
        gone = number(client, "green.png")
        put(pictures / "white.png", encoded(picture("white", (9, 9))))
        (pictures / "green.png").unlink()
        index.add(pictures, serving.Seeing(), progress=False)
        assert serving.numbers(client, "white", k=1) == ["white.png"]
        after = client.get("/api/info").json()
        assert after["indexes"] == before["indexes"] and after["started"] == before["started"]
        assert client.get(f"/api/items/{gone}").status_code == 404 and "" in client.get("/api/labels").text
        assert running.texts(["green"], "en", 1)[0].hits[0].name == "green.png", "what runs ends as it began"
        assert shown.searcher is not running and (state := shown.index) is not None
        serving.numbers(client, "red", k=1)
        assert shown.index is state, "nothing new"
        (tmp_path / "index/states/000009.json").write_text("{")
        assert serving.numbers(client, "white", k=1) == ["white.png"], "a damaged state is not shown"
        assert serving.numbers(client, "white", k=1) == ["white.png"]
        assert capsys.readouterr().err.count("its new state is not shown") == 1


def test_requests_are_answered_while_a_new_state_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serving.fill(tmp_path)
    shown = serving.gallery(tmp_path)
    put(tmp_path / "pictures/white.png", encoded(picture("white", (9, 9))))
    Index.open(tmp_path / "index").add(tmp_path / "pictures", serving.Seeing(), progress=False)
    service = Service([shown], None, Limits(), None, "")
    begun, go_on = threading.Event(), threading.Event()
    refresh = shown.refresh

    def slowly() -> None:
        begun.set()
        assert go_on.wait(60)
        refresh()

    monkeypatch.setattr(shown, "refresh", slowly)

    async def work() -> tuple[int, int]:
        first = asyncio.create_task(service.gallery(0))
        await asyncio.to_thread(begun.wait, 60)
        meanwhile = (await service.gallery(0)).index.items
        go_on.set()
        return meanwhile, (await first).index.items

    assert asyncio.run(work()) == (7, 8)


def test_a_picture_is_a_query(client: TestClient) -> None:
    found = client.post("/api/search", params={"k": 1}, content=encoded(picture("blue", (20, 20)), "JPEG")).json()
    assert [hit["name"] for hit in found["hits"]] == ["below/blue.png"] and found["query"] is None


@pytest.mark.parametrize(
    ("params", "status", "said"),
    [
        ({"text": ""}, 400, "empty"),
        ({"text": " \t "}, 400, "empty"),
        ({"text": "red", "k": 0}, 422, "k"),
        ({"text": "red", "k": 201}, 400, "200"),
        ({"text": "red", "index": 2}, 404, "there are 2"),
        ({"text": "red", "index": "x"}, 422, "index"),
        ({"text": "r" * 1001}, 400, "1,000"),
        ({"text": "red", "lang": "zz"}, 400, "zz"),
        ({}, 422, "text"),
    ],
)
def test_what_is_wrong_with_a_question_is_said(client: TestClient, params: dict, status: int, said: str) -> None:
    found = client.get("/api/search", params=params)
    assert found.status_code == status and said in found.json()["detail"]


def test_an_error_of_the_model_tells_nothing(client: TestClient) -> None:
    found = client.get("/api/search", params={"text": "nocolour"})
    assert found.status_code == 500 and "nocolour" not in found.text
    assert serving.numbers(client, "red", k=1) == ["red.png"]


def test_an_item(client: TestClient) -> None:
    item = client.get(f"/api/items/{number(client, 'below/blue.png')}").json()
    assert (item["name"], item["kind"], item["labels"], item["captions"]) == (
        "below/blue.png", "image", {"folder": "below"}, {},
    )  # fmt: skip
    assert "path" not in item


def test_similar_items_are_others(client: TestClient) -> None:
    red = number(client, "red.png")
    found = client.get(f"/api/items/{red}/similar", params={"k": 3}).json()["hits"]
    assert len(found) == 3 and red not in [hit["number"] for hit in found] and found[0]["rank"] == 1


def test_thumbnails_are_small_and_kept(client: TestClient) -> None:
    place = f"/api/items/{number(client, 'half.png')}/picture"
    small = client.get(place)
    assert small.headers["content-type"] == "image/jpeg" and "sandbox" in small.headers["content-security-policy"]
    with Image.open(io.BytesIO(small.content)) as image:
        assert image.size == (360, 270)
    with Image.open(io.BytesIO(client.get(place, params={"size": "large"}).content)) as image:
        assert image.size == (640, 480)
    assert client.get(place).content == small.content
    kept = [
        line for line in client.get("/metrics").text.splitlines() if line.startswith('ccr_pictures_total{how="cache"}')
    ]
    assert kept and float(kept[0].split()[1]) >= 1


def test_the_file_itself(client: TestClient) -> None:
    found = client.get(f"/api/items/{number(client, 'yellow é.png')}/picture", params={"full": 1})
    assert found.content == encoded(picture("yellow", (48, 40))) and found.headers["content-type"] == "image/png"
    assert found.headers["content-disposition"] == "inline; filename*=UTF-8''yellow%20%C3%A9.png"
    assert found.headers["x-content-type-options"] == "nosniff"


def test_videos_and_files_that_browsers_do_not_show(tmp_path: Path) -> None:
    pytest.importorskip("av")
    put(tmp_path / "pictures/clip.mp4", generation.video())
    put(tmp_path / "pictures/scan.tiff", encoded(picture("green"), "TIFF"))
    put(tmp_path / "pictures/photo.avif", encoded(picture("blue", (64, 64)), "AVIF"))
    serving.fill(tmp_path)
    kinds = {"clip.mp4": "video/mp4", "scan.tiff": "image/tiff", "photo.avif": "application/octet-stream"}
    with serving.client(serving.gallery(tmp_path)) as client:
        for name, kind in kinds.items():
            place = f"/api/items/{number(client, name)}"
            assert client.get(place).json()["kind"] == ("video" if name == "clip.mp4" else "image")
            assert client.get(f"{place}/picture").headers["content-type"] == "image/jpeg"
            file = client.get(f"{place}/picture", params={"full": 1})
            assert file.content == (tmp_path / "pictures" / name).read_bytes()
            assert file.headers["content-type"] == kind
            assert file.headers["content-disposition"].startswith("inline" if name == "clip.mp4" else "attachment")


def test_thumbnails_take_a_bounded_part_of_the_memory() -> None:
    made = []

    class Pictures:
        place = 0

        def thumbnail(self, number: int, size: str) -> bytes:
            made.append(number)
            return bytes(4000)

    async def work() -> None:
        thumbnails = Thumbnails(Limits(cache=10_000), Metrics())
        for number in (1, 2, 1, 3, 1, 2):  # 3 takes the place of 2, which was asked for longest ago
            assert await thumbnails.get(Pictures(), number, "small") == bytes(4000)
        assert await asyncio.gather(*(thumbnails.get(Pictures(), 9, "small") for _ in range(5))) == [bytes(4000)] * 5

    asyncio.run(work())
    assert made[:4] == [1, 2, 3, 2] and len(made) <= 4 + Limits().decoding


@pytest.mark.parametrize("place", ["/api/items/999", "/api/items/999/picture", "/api/items/999/similar"])
def test_numbers_of_nothing(client: TestClient, place: str) -> None:
    assert client.get(place).status_code == 404
    assert client.get(place.replace("999", "-1")).status_code == 422
    assert client.get(place.replace("999", str(10**30))).status_code == 422


def test_files_that_are_gone_or_changed_are_not_sent(tmp_path: Path) -> None:
    serving.fill(tmp_path)
    secret = tmp_path / "secret.png"
    secret.write_bytes(encoded(half("blue", (9, 9))))
    with serving.client(serving.gallery(tmp_path)) as client:
        places = {name: f"/api/items/{number(client, name)}/picture" for name in ("red.png", "green.png", "half.png")}
        (tmp_path / "pictures/red.png").unlink()
        (tmp_path / "pictures/green.png").write_bytes(encoded(picture("red", (5, 5))))
        (tmp_path / "pictures/half.png").unlink()
        (tmp_path / "pictures/half.png").symlink_to(secret)
        for place in places.values():
            for params in ({}, {"full": 1}, {"size": "large"}):
                found = client.get(place, params=params)
                assert found.status_code == 410 and str(tmp_path) not in found.text
        assert client.get(f"/api/items/{number(client, 'below/blue.png')}/picture").status_code == 200


def test_openapi_describes_it(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert {"/api/search", "/api/items/{number}/picture", "/v1/embeddings", "/api/info"} <= described["paths"].keys()
    assert "image/*" in described["paths"]["/api/search"]["post"]["requestBody"]["content"]


def test_health_and_metrics(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    client.get("/nowhere/<script>")
    text = client.get("/metrics").text
    assert 'ccr_requests_total{route="/health",status="200"}' in text
    assert 'ccr_requests_total{route="other",status="404"}' in text and "<script>" not in text

"""Generation engines without vLLM (that is tests/e2e/test_vllm.py): transformers on tiny models, replay, the chat."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ccr_dist.errors import ConfigError, DataError, EngineError
from ccr_dist.generate.engines.chat import Chat, ModelOptions, shrunk
from ccr_dist.generate.engines.generator import (
    Generation,
    Generator,
    Request,
    generators,
    make_generator,
    request_seed,
)
from tests.generators import answers, picture

pytestmark = pytest.mark.long


def test_generators_are_found_by_name() -> None:
    assert {"openai", "replay", "transformers", "vllm"} <= set(generators.names())
    with pytest.raises(ConfigError, match=r"unknown generation engine 'vlm'; did you mean 'vllm'\?"):
        make_generator("vlm", {})
    with pytest.raises(
        ConfigError, match=r"'openai': model is missing; no option 'url'.*\. Its options: .*base_url \(e.g."
    ):
        make_generator("openai", {"url": "x"})


def test_each_request_has_a_seed_of_its_own() -> None:
    seeds = {request_seed(seed, f"{i}/detail") for seed in range(3) for i in range(300)}
    assert len(seeds) == 900 and all(0 <= seed < 2**31 for seed in seeds)
    assert request_seed(0, "a/detail") == 1697172399  # the same in every process and version: resumed jobs depend on it


def test_pictures_are_scaled_down_to_max_pixels_and_never_up() -> None:
    large, small = shrunk([picture(width=400, height=100), picture(width=40, height=10)], 10_000)
    assert large.size == (200, 50) and small.size == (40, 10)
    assert shrunk([Image.new("L", (5000, 1))], 100)[0].size == (707, 1)
    assert shrunk([Image.new("RGBA", (4, 4))], 100)[0].mode == "RGB"


def chat(model: str, **options: Any) -> Chat:
    return Chat("x", ModelOptions(model=model, **options))


def test_chat_templates_see_system_media_and_text(vlm: str, llm: str) -> None:
    both = Request("a/detail", "What?", system="Be short.", images=(picture(), picture()), frames=(picture(),) * 3)
    head, tail = (
        "<|im_start|>system\nBe short.<|im_end|>\n<|im_start|>user\n",
        "What?<|im_end|>\n<|im_start|>assistant\n",
    )
    image, video = "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
    as_pictures, as_video = chat(vlm)(both), chat(vlm, video=True)(both)
    assert as_pictures.text == head + 5 * image + tail and len(as_pictures.images) == 5 and not as_pictures.frames
    assert as_video.text == head + 2 * image + video + tail and len(as_video.images) == 2 and len(as_video.frames) == 3
    assert chat(llm)(Request("a", "What?", system="Be short.")).text == head + tail
    with pytest.raises(DataError, match=r"a/detail: pictures for .*llm, which takes only text"):
        chat(llm)(both)


def test_a_template_of_ones_own(vlm: str, tmp_path: Path) -> None:
    request = Request("a", "What?", system="S", images=(picture(), picture()))
    prompt = chat(vlm, template="{system}|USER: {media}\n{text} {{ASSISTANT}}:")(request)
    assert prompt.text == "S|USER: <|image_pad|><|image_pad|>\nWhat? {ASSISTANT}:" and prompt.special
    with pytest.raises(ConfigError, match="template: 'txt' is no field"):
        chat(vlm, template="{txt}")
    with pytest.raises(EngineError, match="cannot load the processor of '/no/where'"):
        chat("/no/where")(request)


def test_what_a_template_refuses_is_an_item_error(llm: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokenizer.chat_template = "{{ raise_exception('no system here') if messages[0]['role'] == 'system' }}fine"
    tokenizer.save_pretrained(tmp_path / "picky")
    assert chat(str(tmp_path / "picky"))(Request("a", "x")).text == "fine"
    with pytest.raises(DataError, match=r"b: the chat template of .*picky refuses it: no system here"):
        chat(str(tmp_path / "picky"))(Request("b", "x", system="S"))
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(EngineError, match="bare has no chat template; give one with the option template"):
        chat(str(tmp_path / "bare"))(Request("a", "x"))


@pytest.fixture(scope="module")
def vlm(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("torch")
    from tests.tiny_vlm import tiny_vlm

    return tiny_vlm(tmp_path_factory.mktemp("models") / "vlm")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("torch")
    from tests.tiny_vlm import tiny_llm

    return tiny_llm(tmp_path_factory.mktemp("models") / "llm")


def hf(model: str, **options: Any) -> Generator:
    engine = make_generator("transformers", {"model": model, "device": "cpu", **options})
    engine.load()
    return engine


def test_transformers_answers_as_the_library_does_in_any_batch(vlm: str) -> None:
    import torch
    from transformers import AutoModelForImageTextToText, AutoProcessor

    requests = [
        Request(f"{i}/detail", "a dog " * i, images=(picture(i, 60 + 30 * i),), max_tokens=6 + 4 * i) for i in range(4)
    ]
    processor, model = AutoProcessor.from_pretrained(vlm), AutoModelForImageTextToText.from_pretrained(vlm)
    expected = []
    for request in requests:
        content = [{"type": "image"}, {"type": "text", "text": request.text}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=[text], images=list(request.images), return_tensors="pt")
        with torch.inference_mode():
            output = model.generate(**inputs, max_new_tokens=request.max_tokens, do_sample=False)[0]
        length = inputs["input_ids"].shape[1]
        said = processor.tokenizer.decode(output[length:], skip_special_tokens=True).strip()
        finish = "stop" if int(output[-1]) == processor.tokenizer.eos_token_id else "length"
        expected.append(Generation(said, len(output) - length, length, finish))
    assert len({answer.text[:5] for answer in expected}) > 1, "the model does not look at its pictures"
    for batch in (1, 3, 8):
        assert answers(hf(vlm, batch=batch), requests) == expected
    engine: Any = hf(vlm)
    (dog,), end = engine._tokenizer.encode(" dog"), engine._tokenizer.eos_token_id
    assert engine._cut([dog, dog, end, end], 8, 5) == Generation("dog dog", 3, 5, "stop")
    # a longer neighbour went on
    assert engine._cut([dog, dog, dog, end], 2, 5) == Generation("dog dog", 2, 5, "length")


def test_transformers_takes_text_pictures_and_videos_side_by_side(vlm: str, llm: str) -> None:
    frames = tuple(picture(i) for i in range(4))
    mixed = [
        Request("0", "a cat", max_tokens=4),
        Request("1", "a cat", frames=frames, max_tokens=4),
        Request("2", "a cat", images=(picture(1),), max_tokens=4),
        Request("3", "a cat", frames=frames[::-1], max_tokens=4),
        Request("4", "a dog", max_tokens=4),
    ]
    together = answers(hf(vlm, video=True), mixed)
    assert together == [answers(hf(vlm, video=True), [request])[0] for request in mixed]
    assert together[1] != together[3] and all(
        isinstance(answer, Generation) and answer.tokens == 4 for answer in together
    )
    video, pictures = together[1], answers(hf(vlm), mixed)[1]
    assert (
        isinstance(video, Generation)
        and isinstance(pictures, Generation)
        and pictures.prompt_tokens > video.prompt_tokens
    )
    assert [type(answer) for answer in answers(hf(llm), [mixed[0], mixed[4]])] == [Generation, Generation]


def test_transformers_stops_at_texts_and_follows_schemas(vlm: str) -> None:
    plain = [Request(f"{i}", "list", images=(picture(i),), max_tokens=24) for i in range(3)]
    whole = answers(hf(vlm), plain)
    letters = [answer.text[5] for answer in whole if isinstance(answer, Generation)]
    cut = answers(hf(vlm, stop=(letters[0],)), plain)
    for before, after in zip(whole, cut, strict=True):
        assert isinstance(before, Generation) and isinstance(after, Generation)
        assert after.text == before.text.partition(letters[0])[0].strip()
        assert after.finish == ("stop" if letters[0] in before.text else before.finish)
    pytest.importorskip("xgrammar", reason="xgrammar is not installed (comes with vllm)")
    schema = {"type": "array", "items": {"enum": ["cat", "dog"]}, "minItems": 1, "maxItems": 2}
    follow = [
        Request(request.id, request.text, images=request.images, max_tokens=200, schema=schema) for request in plain
    ]
    asked = answers(hf(vlm), [follow[0], plain[1], *follow[1:]])
    assert asked[1] == whole[1]
    for answer in (asked[0], *asked[2:]):
        assert isinstance(answer, Generation) and answer.finish == "stop"
        assert set(json.loads(answer.text)) <= {"cat", "dog"}
    bad = answers(hf(vlm), [Request("x", "list", schema={"type": "no such type"})])
    assert isinstance(bad[0], DataError)


def test_transformers_sampling_depends_on_the_request_and_not_on_its_neighbours(llm: str) -> None:
    requests = [Request(f"{i}/a", "the dog", max_tokens=12) for i in range(4)]
    sampled = answers(hf(llm, temperature=1.0, seed=3), requests)
    assert len({answer.text for answer in sampled if isinstance(answer, Generation)}) == 4
    assert answers(hf(llm, temperature=1.0, seed=3), requests[::-1]) == sampled[::-1]
    assert answers(hf(llm, temperature=1.0, seed=4), requests) != sampled


def test_transformers_prompt_too_long_is_an_item_error(vlm: str) -> None:
    requests = [
        Request("a", "dog", max_tokens=4),
        Request("b", "x" * 5000, max_tokens=4),
        Request("c", "cat", max_tokens=4),
    ]
    short, long, other = answers(hf(vlm), requests)
    assert isinstance(long, DataError) and "b: " in str(long) and "the model takes 4096" in str(long)
    assert isinstance(short, Generation) and isinstance(other, Generation)


def test_identity_follows_weights_and_sampling(llm: str, tmp_path: Path) -> None:
    def identity(model: str = llm, **options: Any) -> Any:
        return make_generator("transformers", {"model": model, **options}).identity()

    assert identity(batch=3, device="cpu") == identity() == identity(top_p=0.5)  # irrelevant to greedy answers
    for option in (
        {"temperature": 0.5},
        {"repetition_penalty": 1.1},
        {"stop": ["."]},
        {"max_pixels": 9},
        {"template": "{text}"},
    ):
        assert identity(**option) != identity(), option
    assert identity(temperature=0.5) != identity(temperature=0.5, seed=1)
    assert json.dumps(identity()).find(str(Path(llm).parent)) < 0
    with pytest.raises(EngineError, match="'no/such-model' is neither a local folder nor a Hugging Face id"):
        identity("no/such-model")


def of_family(engine: Any, requests: list[Request]) -> list[Generation]:
    """Answers, each as the model itself gives it for its request alone, and different for different pictures."""
    together = answers(engine, requests)
    assert all(isinstance(answer, Generation) for answer in together), together
    assert together == [answers(engine, [request])[0] for request in requests]
    return together  # type: ignore[return-value]


@pytest.mark.parametrize("family", ["blip", "blip2-opt", "blip2-t5"])
def test_the_start_of_an_answer_is_kept_in_every_family(family: str, tmp_path: Path) -> None:
    """Models with an encoder give back the answer alone: cutting off as many tokens as the prompt has would lose its
    start.
    """
    torch = pytest.importorskip("torch")
    from transformers import AutoProcessor

    from tests.tiny_families import tiny_blip, tiny_blip2

    folder = (
        tiny_blip(tmp_path / "m") if family == "blip" else tiny_blip2(tmp_path / "m", family.removeprefix("blip2-"))
    )
    engine: Any = hf(folder, template="{text}")
    requests = [Request(f"{i}/v", "a yellow lemon", images=(picture(i),), max_tokens=6) for i in range(3)]
    said = of_family(engine, requests)
    processor = AutoProcessor.from_pretrained(folder)
    for request, answer in zip(requests, said, strict=True):
        inputs = processor(text=["a yellow lemon"], images=list(request.images), return_tensors="pt")
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            (row,) = engine._model.generate(**inputs, max_new_tokens=6, do_sample=False)
        given_back = {
            "blip": inputs["input_ids"].shape[1] - 1,
            "blip2-opt": inputs["input_ids"].shape[1],
            "blip2-t5": 0,
        }[family]
        expected = processor.tokenizer.decode(row[given_back:], skip_special_tokens=True).strip()
        assert answer.text == expected and answer.text and 0 < answer.tokens <= 6
    assert answers(engine, [Request("x/v", "a", images=(picture(1),), max_tokens=3)])[0].tokens <= 3


def test_media_of_which_nothing_reaches_the_model_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from tests.tiny_families import tiny_llava

    folder = tiny_llava(tmp_path / "m")
    frames = tuple(picture(i, 32, 32) for i in range(2))
    of_family(hf(folder), [Request("a/v", "What?", images=frames[:1], max_tokens=4)])
    of_family(hf(folder), [Request("a/v", "What?", frames=frames, max_tokens=4)])  # as pictures
    with pytest.raises(
        EngineError, match=r"sees no videos: nothing of a/v is in .* without video=true frames go in as pictures"
    ):
        answers(hf(folder, video=True), [Request("a/v", "What?", frames=frames, max_tokens=4)])


def test_a_processor_that_needs_another_package_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")

    def missing(*args: Any, **kwargs: Any) -> None:
        raise ImportError(
            "Package `num2words` is required to run SmolVLM processor. Install it with `pip install num2words`."
        )

    monkeypatch.setattr(transformers.AutoProcessor, "from_pretrained", missing)
    with pytest.raises(
        EngineError,
        match=r"cannot load the processor of '.*smol': Package `num2words` is required .* `pip install num2words`",
    ):
        chat(str(tmp_path / "smol"))(Request("a", "x"))


def test_thinking_is_told_from_the_answer_where_its_marks_are_special_tokens(llm: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = Path(shutil.copytree(llm, tmp_path / "thinks"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>", "<|im_end|>"]})
    tokenizer.save_pretrained(folder)
    engine: Any = hf(str(folder))
    ids = engine._tokenizer.encode("<think> a dog</think> a cat")
    assert engine._cut(ids, 20, 1).text == "<think> a dog</think> a cat"


def test_the_chat_template_is_told_more(llm: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(llm)
    tokenizer.chat_template = (
        "{{ messages[-1]['content'] }}{% if enable_thinking is defined and not enable_thinking %}<think></think>{%"
        " endif %}"
    )
    tokenizer.save_pretrained(tmp_path / "thinks")
    model = str(tmp_path / "thinks")
    assert chat(model)(Request("a", "x")).text == "x"
    quiet = chat(model, chat_template_kwargs={"enable_thinking": False})
    assert quiet(Request("a", "x")).text == "x<think></think>"
    assert (
        "chat_template_kwargs" in quiet.options.sampling()
        and "chat_template_kwargs" not in chat(model).options.sampling()
    )
    with pytest.raises(ConfigError, match=r"chat_template_kwargs: the chat template of .*thinks has no enable_thinkng"):
        chat(model, chat_template_kwargs={"enable_thinkng": False})(Request("a", "x"))
    with pytest.raises(ConfigError, match="tokenize: not for you to set"):
        make_generator("transformers", {"model": model, "chat_template_kwargs": {"tokenize": True}})


def test_replay_answers_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    lines = [
        {"key": "a", "view": "detail", "text": " a dog \n", "tokens": 3},
        {"key": "b/c", "view": "x", "text": "", "finish": "length"},
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    engine = make_generator("replay", {"path": str(path)})
    identity = engine.identity()
    engine.load()
    found = answers(engine, [Request("b/c/x", "?"), Request("a/objects", "?"), Request("a/detail", "?")])
    assert found[0] == Generation("", 0, 0, "length") and found[2] == Generation("a dog", 3, 0, "stop")
    assert isinstance(found[1], DataError) and "a/objects: no answer in answers.jsonl" in str(found[1])
    for wrong, said in (
        (lines[0], "line 4: a second answer for a/detail"),
        ({"key": "d"}, "line 4: expected .*KeyError: 'view'"),
    ):
        path.write_text("\n".join(map(json.dumps, [*lines, *lines[:0]])) + "\n\n" + json.dumps(wrong))
        with pytest.raises(DataError, match=said):
            engine.load()
    assert engine.identity() != identity
    with pytest.raises(ConfigError, match="there is no file"):
        make_generator("replay", {"path": str(tmp_path / "none")})

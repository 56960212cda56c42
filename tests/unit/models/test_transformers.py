"""Dual encoders of transformers: their features are the library's own, whatever company a text is in, and adapters find
their blocks.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import string

import pytest
import torch
from PIL import Image

from ccr_dist.config import base_files
from ccr_dist.errors import ConfigError
from ccr_dist.methods.lora.network import LoraBank
from ccr_dist.models.backbones.build import build_backbone
from ccr_dist.models.backbones.transformers.families import FAMILIES
from ccr_dist.models.backbones.transformers.options import TransformersConfig
from ccr_dist.models.packing import Packing
from tests.dual_encoders import CONTEXT, KINDS, dual_folder, words
from tests.nearness import apart, close
from tests.small import front_end, method, unsettle
from tests.tiny import TEXTS

FIXED = ("siglip", "siglip2")
TOKENS = ("clip", "clip-before", "metaclip_2", "chinese_clip", "altclip")


def load(folder, **options):
    return build_backbone(TransformersConfig(kind="transformers", model=str(folder), **options))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {kind: dual_folder(tmp_path_factory.mktemp(kind) / f"Tiny {kind}", kind) for kind in KINDS}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def backbone(folders, kind):
    return load(folders[kind])


def library(folder, kind, texts):
    """get_text_features of the library on what its own tokeniser gives, as its documentation says."""
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokenizer.padding_side = "right"
    if kind in FIXED:
        ids = tokenizer(texts, padding="max_length", truncation=True, max_length=CONTEXT, return_tensors="pt")
        return model.get_text_features(input_ids=ids["input_ids"]).pooler_output
    limit = {"truncation": True, "max_length": CONTEXT}
    one_by_one = [tokenizer([text], return_tensors="pt", **limit) for text in texts]
    return torch.cat([model.get_text_features(**inputs).pooler_output for inputs in one_by_one])


def pictures():
    torch.manual_seed(0)
    sizes = [(64, 48), (30, 90), (33, 33)]
    noise = [torch.randint(0, 256, (height, width, 3), dtype=torch.uint8).numpy() for width, height in sizes]
    return [Image.fromarray(each) for each in noise]


def test_every_family_is_tested():
    assert set(FAMILIES) == {kind.partition("-")[0] for kind in KINDS}


@torch.no_grad()
def test_features_are_the_librarys_own(backbone, folders, kind):
    from transformers import AutoImageProcessor, AutoModel

    expected = library(folders[kind], kind, list(TEXTS))
    assert torch.pdist(torch.nn.functional.normalize(expected, dim=-1)).min() > 1e-3  # else agreeing shows nothing
    close(backbone.text_features(TEXTS), expected)
    close(torch.cat([backbone.text_features([text]) for text in TEXTS]), expected)
    assert torch.equal(backbone.encode_text(TEXTS), backbone.text_features(TEXTS))
    assert backbone.text_features([]).shape == (0, backbone.dim)

    model, processor = (
        AutoModel.from_pretrained(folders[kind]).eval(),
        AutoImageProcessor.from_pretrained(folders[kind]),
    )
    theirs = model.get_image_features(**processor(images=pictures(), return_tensors="pt")).pooler_output
    transform = pickle.loads(pickle.dumps(backbone.image_transform()))
    pixels = torch.stack([transform(picture) for picture in pictures()])
    assert pixels.shape[:2] == (3, 3) and pixels.dtype == torch.float32 and transform.random is False
    close(backbone.image_features(pixels), theirs)
    close(backbone.encode_image(pixels[1:2]), theirs[1:2])
    assert theirs.shape == (3, backbone.dim) and torch.pdist(theirs).min() > 1e-3


@torch.no_grad()
def test_long_texts_lose_their_ends_and_are_counted(backbone, folders, kind):
    texts = ["a lemon", "dogs " * 13 + "lemon", "dogs " * 30, "x" * 100_000]
    full = "dogs " * (CONTEXT - (1 if kind in FIXED else 2))
    found = backbone.text_features([*texts, full.strip()])
    assert backbone.truncated == 2
    close(found, library(folders[kind], kind, [*texts[:3], "x" * 1000, full.strip()]))
    assert torch.isfinite(found).all()


@torch.no_grad()
def test_blocks_in_a_row_equal_the_library(backbone, kind):
    tower, expected = backbone.tower, backbone.encode_text(TEXTS)
    x, mask, end = tower.embed_native(TEXTS)
    seen = []
    close(tower.run(x, mask, end, after=lambda layer, h: (seen.append(layer), h)[1]), expected)
    assert seen == [0, 1] and (tower.layers, tower.width, tower.dim) == (2, 16, backbone.dim)
    assert apart(tower.run(x, mask, end, after=lambda layer, h: h + torch.linspace(-1, 1, h.shape[-1])), expected)
    assert tower.run(x[:0], mask[:0], end[:0]).shape == (0, backbone.dim)
    assert tower.fixed_length is (kind in FIXED) and tower.packs is (kind not in FIXED)
    if kind in FIXED:
        assert x.shape[1] == tower.context_length == CONTEXT and apart(
            tower.run(x[:, :-3], mask[:, :-3], end), expected
        )
        return
    close(tower.run(x, mask, end, rows=Packing((end + 1).tolist(), tower.context_length)), expected)
    wider = torch.nn.functional.pad(x, (0, 0, 0, 1), value=7.0), torch.nn.functional.pad(mask, (0, 1))
    close(tower.run(*wider, end), expected)
    assert torch.equal(tower.sentence(x, mask, end), x[:, 0] if backbone.family.pooled == "first" else x[range(7), end])


@torch.no_grad()
def test_half_precision(backbone):
    tower, whole = backbone.tower, backbone.encode_text(TEXTS)
    pixels = torch.stack([backbone.image_transform()(picture) for picture in pictures()])
    with torch.autocast("cpu", torch.bfloat16):
        pairs = [
            (tower.run(*tower.embed_native(TEXTS)), whole),
            (backbone.encode_text(TEXTS), whole),
            (backbone.encode_image(pixels), None),
        ]
    for half, full in pairs:
        full = backbone.encode_image(pixels) if full is None else full
        assert torch.nn.functional.cosine_similarity(half.float(), full).min() > 0.99


@torch.no_grad()
def test_low_rank_matrices_find_its_projections(backbone):
    sizes = {"rank": 2, "alpha": 4, "dropout": 0.0}
    bank = LoraBank(backbone.tower, ["es"], **sizes, targets="qkvo", name=backbone.name)
    x, mask, end = backbone.tower.embed_native(TEXTS)
    close(backbone.tower.run(x, mask, end, blocks=bank.variants("es")), backbone.encode_text(TEXTS))
    unsettle(bank)
    assert apart(backbone.tower.run(x, mask, end, blocks=bank.variants("es")), backbone.encode_text(TEXTS))


def test_adapters_learn_in_it(backbone, kind, tmp_path):
    pad = "context" if kind in FIXED else "packed"
    dasd = method("dasd", backbone, front_end(tmp_path / "mbert", pad=pad), rank=4)
    unsettle(dasd.net)
    found = dasd.encode_text(["un limón amarillo", "dos perros"], "es")["global"]
    assert found.shape == (2, backbone.dim)
    found.sum().backward()
    assert all(parameter.grad is None for parameter in backbone.parameters())
    assert all(parameter.grad is not None for name, parameter in dasd.net.named_parameters() if ".es." in name)


def test_parts_and_identity(backbone, folders, kind, tmp_path):
    names = {name for name, _ in backbone.named_parameters()}
    parts = {part: {name for name in names if backbone.part_of(name) == part} for part in ("image", "text")}
    assert all(name.startswith(("model.vision_model.", "model.visual_projection.")) for name in parts["image"])
    assert "model.logit_scale" in parts["text"] and backbone.model.logit_scale.shape == (1,)
    before = backbone.identity()
    assert str(folders[kind]) not in json.dumps(before) and backbone.name == f"tiny-{kind.replace('_', '-')}"
    shutil.copytree(folders[kind], tmp_path / f"Tiny {kind}")
    assert load(tmp_path / f"Tiny {kind}").identity() == before
    trained = [id(parameter) for parameter in backbone.trainable_parameters("text")]
    assert {id(parameter) for name, parameter in backbone.named_parameters() if name in parts["text"]} == set(trained)


@torch.no_grad()
@pytest.mark.parametrize("kind", TOKENS)
def test_tokens_of_pictures_begin_with_the_global_one(backbone):
    pixels = torch.stack([backbone.image_transform()(picture) for picture in pictures()])
    tokens = backbone.image_tokens(pixels)
    assert tokens.shape == (3, 1 + 16, backbone.dim) and backbone.token_width == backbone.dim
    close(tokens[:, 0], backbone.image_features(pixels))


@pytest.mark.parametrize("kind", FIXED)
def test_pooling_by_attention_leaves_no_tokens(backbone):
    with pytest.raises(ConfigError, match="pools by attention"):
        backbone.image_tokens(torch.zeros(1, 3, 8, 8))


@torch.no_grad()
@pytest.mark.parametrize("kind", FIXED)
def test_siglip_reads_small_letters_and_its_padding(backbone, folders, kind):
    from transformers import AutoModel

    shouted = [text.upper() for text in TEXTS[:4]]
    close(backbone.text_features(shouted), backbone.text_features(TEXTS[:4]))
    assert backbone.lower is (kind == "siglip2")  # the other tokeniser does it itself
    model = AutoModel.from_pretrained(folders[kind]).eval()
    short = backbone.tokenizer(list(TEXTS[:1]), return_tensors="pt")
    assert apart(model.get_text_features(**short).pooler_output, backbone.text_features(TEXTS[:1]))


@torch.no_grad()
def test_capitals_matter_to_the_others(folders):
    backbone = load(folders["clip"])
    assert apart(backbone.text_features([TEXTS[0].upper()]), backbone.text_features([TEXTS[0]]))


@torch.no_grad()
def test_the_real_tokenisers_of_siglip(tmp_path):
    """SentencePiece for the first one, whose capitals and punctuation go; Gemma's for the second, which pads on the
    left by itself.
    """
    import sentencepiece
    from transformers import Siglip2Tokenizer, SiglipTokenizer

    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TEXTS, string.ascii_lowercase] * 3), model_writer=written, vocab_size=60,
        hard_vocab_limit=False, bos_id=-1, pad_id=-1, eos_id=1, unk_id=2, character_coverage=1.0, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "spiece.model").write_bytes(written.getvalue())
    first = load(dual_folder(tmp_path / "one", "siglip", tokenizer=SiglipTokenizer(str(tmp_path / "spiece.model"))))
    assert type(first.tokenizer) is SiglipTokenizer and not first.lower
    close(first.text_features(["A yellow LEMON!"]), first.text_features(["a yellow lemon"]))
    close(first.text_features(TEXTS), library(tmp_path / "one", "siglip", list(TEXTS)))

    pieces = {piece: i for i, piece in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *"abcdefghijklmnop"
                                                  "qrstuvwxyz"])}  # fmt: skip
    second = load(dual_folder(tmp_path / "two", "siglip2", tokenizer=Siglip2Tokenizer(pieces, [])))
    assert type(second.tokenizer) is Siglip2Tokenizer and not second.lower
    close(second.text_features(["A Lemon"]), second.text_features(["a lemon"]))
    ids, mask = second._encode(["a lemon"])
    assert ids.shape == (1, CONTEXT) and mask[0, 0] == 1 and ids[0, -1] == 0
    close(second.tower.run(*second.tower.embed_native(TEXTS)), second.text_features(TEXTS))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["clip", "siglip2"])
def test_features_of_pictures_become_a_column(backbone, kind, folders, tmp_path):
    from ccr_dist.data.table.dataset import create_column, create_dataset
    from ccr_dist.generate.jobs.featurise import Featurise
    from ccr_dist.generate.runner import run

    made = create_dataset(tmp_path / "data", name="toy", split="train", keys=[["a", "b", "c"]])
    column = create_column(made, "image", kind="image", extension="png", plan={}, provenance={})
    files = []
    for picture in pictures():
        picture.save(file := io.BytesIO(), "PNG")
        files.append(file.getvalue())
    column.commit(0, files)
    processor = Featurise(lambda: load(folders[kind]), "image", device="cpu")
    run(made, processor, name := processor.default_column(), progress=False)
    assert name == f"feature.tiny-{kind}.image"
    features = made.column(name)
    pixels = torch.stack([backbone.image_transform()(picture) for picture in pictures()])
    found = torch.tensor([features.value(0, row)[0].tolist() for row in range(3)])
    assert torch.allclose(found, backbone.image_features(pixels), rtol=2e-3, atol=2e-3)  # stored as float16
    assert features.plan["backbone"] == {**backbone.feature_identity("image")}


def test_a_model_folder_with_it_loads_where_it_is_copied(folders, tmp_path):
    from ccr_dist.methods.build import build_method
    from ccr_dist.methods.run_config import from_dict
    from ccr_dist.retriever.load import load_model, save_model

    shutil.copytree(folders["siglip2"], tmp_path / "base")
    values = {
        "name": "zero",
        "backbone": {"kind": "transformers", "model": str(tmp_path / "base")},
        "method": {"name": "clip"},
        "data": {"train": [{"path": "train"}], "val": "val", "queries": {"en": "caption.en"}},
    }
    config = from_dict(values, name="zero.yaml")
    fusion = {"weights": {"global": 1.0}, "minmax": False, "ranges": {}}
    save_model(tmp_path / "model", config, build_method(config), trained=(), given=(), fusion=fusion, facts={})

    def rows(folder):
        found = load_model(folder, device="cpu")
        return found.digest, found.encode_text(list(TEXTS), "en").tolist(), found.encode_images(pictures()).tolist()

    before = rows(tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / "elsewhere")
    shutil.rmtree(tmp_path / "base")
    assert rows(tmp_path / "elsewhere") == before


def test_fewer_tokens_on_request(folders):
    short = load(folders["chinese_clip"], max_tokens=5)
    with torch.no_grad():
        short.text_features(["a lemon on a table"])
    assert short.context_length == 5 and short.truncated == 1
    with pytest.raises(ConfigError, match=r"max_tokens.*at most 16"):
        load(folders["chinese_clip"], max_tokens=17)
    with pytest.raises(ConfigError, match=r"max_tokens.*padded to 16"):
        load(folders["siglip"], max_tokens=5)


def test_trained_weights_take_their_place(folders, tmp_path):
    from safetensors.torch import save_file

    trained = load(folders["clip"])
    with torch.no_grad():
        trained.model.text_projection.weight.add_(1)
    (tmp_path / "en-s0").mkdir()
    save_file(
        {f"backbone.{name}": tensor for name, tensor in trained.state_dict().items()},
        str(tmp_path / "en-s0" / "model.safetensors"),
    )
    loaded = load(folders["clip"], weights=str(tmp_path / "en-s0"))
    with torch.no_grad():
        assert torch.equal(loaded.encode_text(TEXTS), trained.encode_text(TEXTS))
    assert loaded.name == "tiny-clip-en-s0"
    section = TransformersConfig(kind="transformers", model=folders["clip"], weights=str(tmp_path / "en-s0"))
    assert {key: str(path) for key, path in base_files(section).items()} == {
        "model": folders["clip"], "weights": str(tmp_path / "en-s0"),
    }  # fmt: skip


def broken(folders, tmp_path, name, change, kind="clip"):
    folder = tmp_path / "broken"
    shutil.copytree(folders[kind], folder)
    path = folder / name
    change(path)
    return folder


def edited(**values):
    def change(path):
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))

    return change


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-100]), "no model could be loaded"),
        ("model.safetensors", lambda path: path.unlink(), "no model could be loaded"),
        ("config.json", lambda path: path.write_text("{"), "no model could be loaded"),
        ("config.json", edited(model_type="clipseg"), "is of type 'clipseg'; kind transformers takes CLIP, MetaCLIP 2"),
        ("config.json", edited(model_type="bert"), "is of type 'bert'"),
        ("tokenizer.json", lambda path: path.unlink(), "tokeniser"),
        ("preprocessor_config.json", lambda path: path.unlink(), "no image processor could be loaded"),
        ("preprocessor_config.json", edited(do_center_crop=False), "which cannot be a batch"),
        (
            "preprocessor_config.json",
            edited(size={"shortest_edge": 40}, crop_size={"height": 40, "width": 40}),
            "do not fit together",
        ),
    ],
)
def test_damaged_folders_are_named(folders, tmp_path, name, change, said):
    folder = broken(folders, tmp_path, name, change)
    with pytest.raises(ConfigError, match=said) as error:
        load(folder)
    assert str(folder) in str(error.value)


def test_weights_that_lack_a_tensor_and_a_strange_tokeniser(folders, tmp_path):
    from safetensors.torch import load_file, save_file

    def without(path):
        tensors = load_file(path)
        del tensors["text_projection.weight"]
        save_file(tensors, path, metadata={"format": "pt"})

    with pytest.raises(ConfigError, match=r"lack 1 tensors of a CLIPModel, for example text_projection\.weight"):
        load(broken(folders, tmp_path / "a", "model.safetensors", without))
    other = dual_folder(tmp_path / "b", "metaclip_2")
    words("<s>", "", "<pad>").save_pretrained(other)  # it ends no text
    with pytest.raises(ConfigError, match="does not end texts with the token"):
        load(other)
    with pytest.raises(ConfigError, match=r"revision.*local folder"):
        load(folders["clip"], revision="main")
    with pytest.raises(ConfigError, match="no model could be loaded"):
        load("no-such/model", revision="abc")

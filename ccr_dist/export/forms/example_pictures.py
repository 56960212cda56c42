"""Pictures in the order of a sentence, with onnxruntime, tokenizers, numpy and pillow:

python example_pictures.py LANGUAGE "a sentence" a.jpg b.jpg ...
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

HERE = Path(__file__).resolve().parent
SPEC = json.loads((HERE / "onnx.json").read_text(encoding="utf-8"))["pictures"]


def encode_pictures(pictures: list) -> np.ndarray:
    pixels = np.stack([to_pixels(picture) for picture in pictures])
    return onnxruntime.InferenceSession(str(HERE / SPEC["model"])).run(None, {"pixel_values": pixels})[0]


def to_pixels(picture: str | Path | Image.Image) -> np.ndarray:
    image: Image.Image = Image.open(picture) if isinstance(picture, str | Path) else picture
    steps = SPEC["steps"]
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:  # on white, as training sees it
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    image, to, how = image.convert("RGB"), steps["to"], Image.Resampling[steps["interpolation"].upper()]
    if steps["resize"] == "pad":
        image = ImageOps.pad(image, (to[1], to[0]), how, color=steps["fill"])
    elif steps["resize"] == "squash":
        image = image.resize((to[1], to[0]), how)
    else:
        short, long = sorted(image.size)
        sides = (to, int(to * long / short))
        image = image.resize(sides if image.width <= image.height else sides[::-1], how)
    if steps["crop"]:
        height, width = steps["crop"]
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    values = (np.asarray(image, np.float32) / steps["scale"] - np.float32(steps["mean"])) / np.float32(steps["std"])
    return values.astype(np.float32).transpose(2, 0, 1)


if __name__ == "__main__":
    from example import encode_texts

    language, text, *paths = sys.argv[1:]
    scores = encode_pictures(paths) @ encode_texts([text], language)[0]
    for number in np.argsort(-scores):
        print(f"{scores[number]:.4f}  {paths[number]}")

"""Augmentation of training pictures as a pure function of a seed, in front of any backbone's own transform.

The loader calls a transform with a picture and, where its attribute `random` is True, the seed of the draw
(`data/stream/loader.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random
from typing import Any

from PIL import Image
from torch import Tensor

ATTEMPTS = 10
WIDEST = 4 / 3


class RandomPart:
    """A random part of the picture, mirrored half of the time, through `transform`.

    With a transform that resizes both sides (`resize: squash`) this is RandomResizedCrop with a horizontal flip,
    LECCR's training transform at `least` = 0.5: area uniform in [least, 1] of the picture, aspect ratio log-uniform in
    [3/4, 4/3].
    """

    random = True

    def __init__(self, transform: Callable[[Any], Tensor], least: float = 0.5) -> None:
        self.transform, self.least = transform, least

    def __call__(self, picture: Image.Image, seed: int) -> Tensor:
        dice = Random(seed)
        part = picture.crop(self._box(dice, *picture.size))
        return self.transform(part.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if dice.random() < 0.5 else part)

    def _box(self, dice: Random, width: int, height: int) -> tuple[int, int, int, int]:
        """Left, top, right, bottom; as much of the middle as the ratios allow where no draw fits into a long and narrow
        picture.
        """
        for _ in range(ATTEMPTS):
            area = width * height * dice.uniform(self.least, 1)
            ratio = math.exp(dice.uniform(-math.log(WIDEST), math.log(WIDEST)))
            w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
            if 0 < w <= width and 0 < h <= height:
                left, top = dice.randint(0, width - w), dice.randint(0, height - h)
                return left, top, left + w, top + h
        w, h = min(width, round(height * WIDEST)), min(height, round(width * WIDEST))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h

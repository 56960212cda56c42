"""Published corpora that mteb has not, or not in the form in which papers on cross-lingual retrieval use them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Corpus:
    """A published corpus, for which a recipe makes the dataset.

    Attributes:
        recipe: that makes it; the name of the dataset.
        visual: image or video.
        languages: of its test split, which papers report.
        about: one sentence.
        reference: where it is described.
        year: of publication.
        bibtex: "" where mteb's authors ask for none, too.
        licence: as mteb writes it.
    """

    recipe: str
    visual: str
    languages: tuple[str, ...]
    about: str
    reference: str
    year: int
    bibtex: str = ""
    licence: str = "not specified"


_MULTI30K = r"""
@inproceedings{elliott2016multi30k,
  address = {Berlin, Germany},
  author = {Elliott, Desmond and Frank, Stella and Sima'an, Khalil and Specia, Lucia},
  booktitle = {Proceedings of the 5th Workshop on Vision and Language},
  pages = {70--74},
  publisher = {Association for Computational Linguistics},
  title = {Multi30K: Multilingual English-German Image Descriptions},
  year = {2016},
}
"""
_VATEX = r"""
@inproceedings{wang2019vatex,
  author = {Wang, Xin and Wu, Jiawei and Chen, Junkun and Li, Lei and Wang, Yuan-Fang and Wang, William Yang},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision (ICCV)},
  title = {VATEX: A Large-Scale, High-Quality Multilingual Dataset for Video-and-Language Research},
  year = {2019},
}
"""
# What mteb has not. Its own Multi30k tasks have one caption a picture in each language; its VATEX and MSR-VTT are
# English.
CORPORA = {
    "Multi30kTask2": Corpus(
        "multi30k-task2",
        "image",
        ("en", "de", "fr", "cs"),
        "Multi30K's test set of 2016: 1,000 Flickr30K pictures with five English and five German captions, written"
        " independently, and one French and one Czech translation.",
        "https://aclanthology.org/W16-3210/",
        2016,
        _MULTI30K,
    ),
    "XTD10": Corpus(
        "xtd10",
        "image",
        ("en", "de", "fr", "es", "it", "ja", "ko", "pl", "ru", "tr", "zh"),
        "1,000 MSCOCO pictures with one caption in each of eleven languages.",
        "https://github.com/adobe-research/Cross-lingual-Test-Dataset-XTD10",
        2020,
    ),
    "VATEXZh": Corpus(
        "vatex",
        "video",
        ("zh",),
        "One half of VATEX's validation set, as papers on cross-lingual retrieval use it: 1,500 clips with ten Chinese"
        " captions each.",
        "https://arxiv.org/abs/1904.03493",
        2019,
        _VATEX,
        "cc-by-4.0",
    ),
    "MSRVTTCN": Corpus(
        "msrvtt-cn",
        "video",
        ("zh",),
        "MSR-VTT's test videos with Chinese captions (MSR-VTT-CN), as NRCCR publishes them.",
        "https://github.com/LiJiaBei-7/nrccr",
        2022,
    ),
}

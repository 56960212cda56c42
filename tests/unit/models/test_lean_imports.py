"""What transformers need not import is left out, and it still knows what is installed."""

from __future__ import annotations

import importlib.util
import sys

import ccr_dist.models
from ccr_dist.models import lean_imports


def test_a_model_comes_without_scikit_learn() -> None:
    from transformers import utils
    from transformers.generation import candidate_generator

    assert ccr_dist.models.__doc__
    assert not hasattr(candidate_generator, "roc_curve")
    assert candidate_generator.CandidateGenerator.__module__ == candidate_generator.__name__
    assert utils.is_sklearn_available() == (importlib.util.find_spec("sklearn") is not None)


def test_it_is_installed_once() -> None:
    before = list(sys.meta_path)
    lean_imports.install()
    assert sys.meta_path == before

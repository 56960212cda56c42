"""Cross-lingual cross-modal retrieval, trained on clusters. See README.md in this folder for the architecture."""

__version__ = "0.1.0"

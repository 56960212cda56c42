"""Translate-test: foreign queries are machine-translated to English beforehand and asked of the backbone as it is.
Nothing is trained.
"""

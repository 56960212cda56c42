"""Recipes: where a dataset's rows come from. One file a recipe; found by looking, registered by `base.register`."""

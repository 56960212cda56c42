"""A frozen English sentence encoder alone."""

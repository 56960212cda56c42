"""Any open_clip model."""

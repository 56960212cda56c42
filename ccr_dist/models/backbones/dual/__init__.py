"""Two frozen encoders joined by trained projection heads."""

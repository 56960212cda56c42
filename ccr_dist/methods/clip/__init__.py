"""Zero-shot: the backbone as it is. Every language goes through its English text encoder, and nothing is trained."""

"""A frozen sentence encoder alone, of one language or of many."""

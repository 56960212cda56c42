"""The page and its HTTP API: indexes of pictures, searched from a browser or a program."""

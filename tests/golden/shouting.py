"""`ccr-dist` with the translation engine `shout` of the tests: python -m tests.golden.shouting translate ..."""

from ccr_dist import cli
from tests import jobs  # noqa: F401 (registers the engine)

if __name__ == "__main__":
    cli.main()

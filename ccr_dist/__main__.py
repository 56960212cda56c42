"""`python -m ccr_dist`, which is how launchers start the command line."""

from ccr_dist.cli import main

if __name__ == "__main__":
    main()

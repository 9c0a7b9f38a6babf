"""`python -m spectralbench`."""

from spectralbench.cli import main

if __name__ == "__main__":
    main()

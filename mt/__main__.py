"""Run the command line with `python -m mt`."""

from mt.cli import main

if __name__ == "__main__":
    main()

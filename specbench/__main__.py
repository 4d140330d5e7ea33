"""The command line, as python -m specbench."""

from specbench.cli.main import main

if __name__ == "__main__":
    main()

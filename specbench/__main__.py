"""python -m specbench: the command line."""

from specbench.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m chatwright` is the command line."""

from chatwright.cli.main import main

if __name__ == "__main__":
    main()

"""`python -m visipruner` is the command `visipruner`; launchers of several processes start it this way."""

from visipruner.cli import main

if __name__ == "__main__":
    main()

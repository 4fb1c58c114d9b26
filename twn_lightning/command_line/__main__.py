"""python -m twn_lightning.command_line: the same as `twn`."""

import sys

from twn_lightning.command_line.app import main

if __name__ == "__main__":
    sys.exit(main())

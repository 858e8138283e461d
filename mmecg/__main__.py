"""``python -m mmecg``: the same as the ``mmecg`` command."""

import sys

from mmecg.cli import main

if __name__ == "__main__":
    sys.exit(main())

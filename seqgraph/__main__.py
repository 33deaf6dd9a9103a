"""``python -m seqgraph`` is the ``seqgraph`` program."""

import sys

from seqgraph.cli.main import main

sys.exit(main())

#!/usr/bin/env python3
"""The chapter's command line: the same as `headroute train` with the same arguments.

python3 scripts/train_multi_head_projection.py \\
    --db lda.db --model all-MiniLM-L6-v2 --temperature 0.1 --validate
"""

import sys

from headroute.cli import main

sys.exit(main(["train", *sys.argv[1:]]))

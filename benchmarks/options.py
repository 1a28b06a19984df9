"""What all benchmarks' commands share."""

import argparse
from typing import Any


def parse(parser: argparse.ArgumentParser, **few: Any) -> argparse.Namespace:
    """The options, with ``--smoke`` for all: as little as shows that the benchmark runs.

    Args:
        parser: With the benchmark's own options.
        few: Their values with ``--smoke``.
    """
    parser.add_argument("--smoke", action="store_true", help="as little as shows that it runs, in seconds")
    options = parser.parse_args()
    if options.smoke:
        vars(options).update(few)
    return options

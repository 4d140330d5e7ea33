"""specbench: a benchmark of speculative decoding."""

from pathlib import Path

__version__ = "0.2.0"
ROOT = Path(__file__).parent.parent  # the checkout, with conf/, results/ and the embedded models

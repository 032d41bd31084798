"""``python -m pipeline``: the same as the command ``qwq-batch``."""

from pipeline.cli import main

main()

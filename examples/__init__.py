"""Scenarios on top of the product. Nothing in the product imports them."""

import signal
import sys

if sys.argv[0] == "-m":  # a demo is about to import its libraries: Ctrl-C ends it at once
    signal.signal(signal.SIGINT, signal.SIG_DFL)

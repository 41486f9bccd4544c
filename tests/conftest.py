"""Ctrl-C is heard in all tests, also in the background of a script, whose programs ignore SIGINT from their start."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

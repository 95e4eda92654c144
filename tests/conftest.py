"""Ctrl-C is among what is tested: a suite that a shell started in its background would inherit that it is ignored."""

import signal

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

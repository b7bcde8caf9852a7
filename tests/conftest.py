"""For all tests: nnU-Net reads how many processes it may start when it is imported."""

import os
import signal

os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("nnUNet_n_proc_DA", "1")

# Tests that a shell starts in the background ignore SIGINT, and so would the processes that they start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

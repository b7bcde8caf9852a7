"""For all tests: nnU-Net reads how many processes it may start when it is imported."""

import os

os.environ.setdefault("nnUNet_def_n_proc", "1")
os.environ.setdefault("nnUNet_n_proc_DA", "1")

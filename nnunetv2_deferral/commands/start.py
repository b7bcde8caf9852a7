"""The console scripts. Arguments are parsed first, because importing PyTorch and nnU-Net takes seconds."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from collections.abc import Callable
from importlib import import_module

from nnunetv2_deferral.commands import parsers


def _script(name: str) -> Callable[[], None]:
    """The script of the command in the module of that name; interrupted, it ends in one line and with 130."""

    def run() -> None:
        make: Callable[[], ArgumentParser] = getattr(parsers, name)
        parser = make()
        parser.parse_args()  # ends here for --help and for what cannot be parsed
        try:
            import_module(f"nnunetv2_deferral.commands.{name}").main()
        except KeyboardInterrupt:
            print(f"\n{parser.prog}: interrupted", file=sys.stderr)
            sys.exit(130)

    return run


benchmark = _script("benchmark")
calibrate = _script("calibrate")
convert_dataset = _script("convert_dataset")
demo = _script("demo")
dicom = _script("dicom")
doctor = _script("doctor")
evaluate = _script("evaluate")
evaluate_raters = _script("evaluate_raters")
fuse = _script("fuse")
next_dataset = _script("next_dataset")
next_round = _script("next_round")
plan_experiment = _script("plan_experiment")
preprocess_experts = _script("preprocess_experts")
query = _script("query")
review = _script("review")
route = _script("route")
run = _script("run")
shift = _script("shift")
simulate_experts = _script("simulate_experts")
uncertainty = _script("uncertainty")
worklist = _script("worklist")

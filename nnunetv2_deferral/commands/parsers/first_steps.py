"""Commands for a first look: the demo and the check of an installation."""

from __future__ import annotations

import argparse

from nnunetv2_deferral.commands.parsers.shared import new_parser


def demo() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_demo`."""
    parser = new_parser(
        "demo",
        "Run the whole pipeline on generated data, from images to a report, with the stock nnU-Net "
        "commands. Takes a few minutes on two CPU cores. Your own nnU-Net folders are not touched.",
        "-o demo_output",
    )
    parser.add_argument("-o", metavar="OUT", default="demo_output", help="output folder. Default: ./%(default)s")
    parser.add_argument(
        "-device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="default: cuda if a GPU is available, else cpu",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier demo in the output folder")
    return parser


def doctor() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_doctor`."""
    parser = new_parser(
        "doctor",
        "Check whether a deferral training would start on this machine.",
    )
    parser.add_argument(
        "--trainers",
        action="store_true",
        help="only print the trainers' folder, for nnUNet_extTrainer",
    )
    return parser

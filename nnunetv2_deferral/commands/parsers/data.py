"""Commands that make or prepare datasets, plans and experts' masks."""

from __future__ import annotations

import argparse
from pathlib import Path

from nnunetv2.configuration import default_num_processes

from nnunetv2_deferral import defaults
from nnunetv2_deferral.commands.parsers.shared import add_processes, add_separate_parts, new_parser
from nnunetv2_deferral.expert_sim.profiles import ERROR_MODEL_NAMES, EXPERT_SETS


def convert_dataset() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_convert_dataset`."""
    parser = new_parser(
        "convert_dataset",
        "Convert a published dataset, downloaded and unpacked, to nnU-Net's raw format. All files are "
        "checked first; the dataset appears once it is complete, and nothing is overwritten.",
        "promise12 -i downloads/promise12 -d 512",
    )
    add = parser.add_argument
    add("dataset", choices=defaults.CONVERTED_DATASETS, help="name of the dataset")
    add("-i", metavar="PUBLISHED_FOLDER", required=True, help="folder with the published files")
    add("-d", metavar="ID", type=int, required=True, help="dataset id in nnU-Net, 1 to 999")
    add("-o", metavar="NNUNET_RAW", help="folder of raw datasets. Default: the environment variable nnUNet_raw")
    add_processes(parser)
    add("-task", type=int, choices=defaults.AMOS22_TASKS, help="amos22: 1 for CT only, 2 for CT and MRI. Default: 2")
    geometry = (
        "pair images and segmentations voxel by voxel even if their headers differ in spacing, origin or direction; "
        "required for some cases of LiTS"
    )
    add("--ignore_label_geometry", action="store_true", help=geometry)
    return parser


def plan_experiment() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_plan_experiment`."""
    parser = new_parser(
        "plan_experiment",
        "Plan the training of deferral networks.",
        "-d 501 -experts standard -num_experts 3 --preprocess",
    )
    add = parser.add_argument
    add("-d", nargs="+", required=True, help="Dataset ids or names, as in nnU-Net")
    planners = ", ".join([defaults.PLANNER, *(f"{defaults.PLANNER}{kind}" for kind in defaults.PLANNER_KINDS)])
    add("-pl", default=defaults.PLANNER, help=f"Planner: {planners}. Default: %(default)s")
    add("-gpu_memory_target", type=float, help="GPU memory to plan for, in GB. Default: the planner's")
    add("-overwrite_target_spacing", type=float, nargs=3, help="Target spacing of 3d_fullres. Default: nnU-Net's")
    add("-overwrite_plans_name", help="Name of the plans. Default: the planner's")
    add("-num_experts", type=int, help="Number of experts J. Default: that of existing plans of this name, else 3")
    sets = "standard (up to 3), scalability (5), complementary (7)"
    words = (
        f"Named set of simulated experts, {sets}, or names of raters. Default: all raters that dataset.json declares"
    )
    add("-experts", nargs="+", help=f"{words}; without any, standard")
    add("--overwrite_deferral", action="store_true", help='Replace the "deferral" block of existing plans')
    add("--preprocess", action="store_true", help="Preprocess the configurations whose data is missing")
    add("-c", nargs="+", help="With --preprocess: configurations. Default: all in the plans")
    add("-np", type=int, nargs="+", help="With --preprocess: number of processes, one value or one for each of -c")
    return parser


def preprocess_experts() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_preprocess_experts`."""
    parser = new_parser(
        "preprocess_experts",
        'Check the masks expertsTr/<expert>/<case> of the experts declared in dataset.json ("experts") '
        "against their images, and preprocess them in the same way as the cases.",
        "-d 501 -p nnUNetDeferralPlans",
    )
    parser.add_argument("-d", nargs="+", required=True, help="dataset ids or names")
    parser.add_argument("-p", default="nnUNetPlans", help="plans. Default: %(default)s")
    parser.add_argument("-c", nargs="+", help="configurations. Default: all that are preprocessed")
    parser.add_argument("-np", type=int, default=default_num_processes, help="processes. Default: %(default)s")
    return parser


def simulate_experts() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_simulate_experts`."""
    parser = new_parser(
        "simulate_experts",
        "Simulate experts for a folder of reference labels. Writes OUT/expert1/<case>, OUT/expert2/<case>, "
        "... in the format of the labels. The answers are reproducible and do not depend on the number of processes.",
        "-i labelsTs -djfile dataset.json -o expertsTs",
    )
    parser.add_argument("-i", metavar="LABELS", required=True, help="folder with the reference label files")
    parser.add_argument("-djfile", metavar="DATASET_JSON", required=True, help="the dataset.json of these labels")
    parser.add_argument("-o", metavar="OUT", required=True, help="output folder, for example expertsTr of the dataset")
    sets = (
        f"set of expert profiles ({', '.join(EXPERT_SETS)}), or a JSON file of profiles. Default: standard up to 3 "
        "experts, else scalability"
    )
    parser.add_argument("-experts", metavar="EXPERTS", help=sets)
    number = "number of experts of a set. Default: 3"
    parser.add_argument("-num_experts", metavar="J", type=int, default=3, help=number)
    parser.add_argument("-seed", type=int, default=0, help="random seed of the errors. Default: 0")
    add_processes(parser)
    add_separate_parts(parser, "simulate")
    width = f"width of the boundary band on each side of a label change. Default: {defaults.BOUNDARY_WIDTH}"
    parser.add_argument("-boundary_width", metavar="VOXELS", type=int, default=defaults.BOUNDARY_WIDTH, help=width)
    voxel = "edge of the voxels in which band and correlation of errors are measured. Default: those of the label files"
    parser.add_argument("-voxel_mm", dest="expert_voxel_mm", metavar="MM", type=float, help=voxel)
    error_model = "error model of all experts. Default: those of their profiles"
    parser.add_argument("-error_model", choices=ERROR_MODEL_NAMES, help=error_model)
    parser.add_argument("--overwrite", action="store_true", help="replace existing answers")
    return parser


def shift() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_shift`."""
    parser = new_parser(
        "shift",
        "Create copies of images as another scanner or protocol might have produced them, to test a model under shift. "
        "Writes the images and their shifted copies to OUT/images, references and experts' masks under the same names, "
        "and domains.json and groups.json for nnUNetv2_deferral_evaluate.",
        "-i imagesTs -ref labelsTs -o shifted -kinds noise blur gamma -levels 1 3",
    )
    add = parser.add_argument
    add("-i", metavar="IMAGES", type=Path, required=True, help="folder of images (<case>_0000)")
    add("-o", metavar="OUT", type=Path, required=True, help="new output folder")
    kinds = defaults.SHIFT_KINDS
    words = f"kinds of shifts, and {defaults.SHUFFLE} for images without their structures. Default: {' '.join(kinds)}"
    add("-kinds", metavar="KIND", nargs="+", default=list(kinds), help=words)
    words = "strengths: 1 as in nnU-Net's augmentation, 2 and 3 beyond. Default: 1 2 3"
    add("-levels", metavar="L", type=int, nargs="+", default=[1, 2, 3], help=words)
    add("-seed", type=int, default=0, help="random seed. Default: %(default)s")
    add("-ref", metavar="LABELS", type=Path, help="folder of the references, to be copied for each shift")
    add("-experts", metavar="EXPERTS", type=Path, help="folder <expert>/<case> of masks, to be copied for each shift")
    add(
        "-groups", metavar="JSON", type=Path, help="maps each case to its group (patient). Default: each case by itself"
    )
    add("-djfile", metavar="DATASET_JSON", type=Path, help="the dataset.json. Default: beside IMAGES")
    add_processes(parser)
    return parser

"""The options of every command. Importing this takes no PyTorch and no nnU-Net, so that `--help` answers at once."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from nnunetv2.configuration import default_num_processes

from nnunetv2_deferral import __version__, defaults
from nnunetv2_deferral.decision.limits import OVER, limit
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.expert_sim.profiles import ERROR_MODEL_NAMES, EXPERT_SETS
from nnunetv2_deferral.parts import Part
from nnunetv2_deferral.processes import check_processes

PREFIX = "nnUNetv2_deferral_"


class _Formatter(argparse.HelpFormatter):
    """Leaves the lines of the example as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if text.startswith("example:") else super()._fill_text(text, width, indent)


class _QuotingParser(argparse.ArgumentParser):
    """Takes the options of other commands as quoted texts, which otherwise look like options of this one."""

    quoted: tuple[str, ...] = ()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        words: list[str] = []
        for word in sys.argv[1:] if args is None else args:
            if words and words[-1] in self.quoted:
                words[-1] += f"={word}"
            else:
                words.append(word)
        return super().parse_known_args(words, namespace)


def _parser(name: str, description: str, *example: str, quoted: tuple[str, ...] = ()) -> argparse.ArgumentParser:
    """A parser with the options that all commands have; the example is the command's words, in lines."""
    prog = f"{PREFIX}{name}"
    lines = " \\\n      ".join([f"{prog} {example[0]}", *example[1:]]) if example else prog
    parser = _QuotingParser(
        prog=prog, description=description, epilog=f"example:\n  {lines}", formatter_class=_Formatter
    )
    parser.quoted = quoted
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    return parser


def _add_predictions(parser: argparse.ArgumentParser, what: str = "folder of masks and deferral maps") -> None:
    parser.add_argument("-i", metavar="PREDICTIONS", type=Path, required=True, help=what)


def _add_dataset_json(parser: argparse.ArgumentParser) -> None:
    words = "the model's dataset.json. Default: beside PREDICTIONS"
    parser.add_argument("-djfile", metavar="DATASET_JSON", type=Path, help=words)


def _add_resampling(parser: argparse._ActionsContainer) -> None:
    words = "maps each case to its group (patient), the unit of resampling for the intervals"
    parser.add_argument("-groups", metavar="JSON", type=Path, help=words)
    words = "seed of the bootstrap intervals. Default: %(default)s"
    parser.add_argument("-bootstrap_seed", type=int, default=0, help=words)


def _add_evidence(parser: argparse.ArgumentParser) -> None:
    how = parser.add_mutually_exclusive_group()
    words = "read answers as evidence. Default: if the calibration has an evidence model of the experts who answered, "
    words += "unless they answered on the review page"
    how.add_argument("--evidence", action="store_const", const=True, help=words)
    words = "an answer replaces the model's label"
    how.add_argument("--replace", action="store_const", const=False, dest="evidence", help=words)


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-np", metavar="N", type=int, default=1, help="number of processes. Default: 1")


def _add_separate_parts(parser: argparse.ArgumentParser, words: str) -> None:
    """Of a command whose parts need not be put together."""
    add = parser.add_argument
    add("-num_parts", metavar="N", type=int, default=1, help=f"only {words} one of N parts of the cases")
    add("-part_id", metavar="I", type=int, default=0, help="with -num_parts: the part, 0 to N-1")


def _add_parts(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    _add_processes(parser)
    words = "only do one of N parts of the cases, in a job of its own; see --merge"
    add("-num_parts", metavar="N", type=int, default=1, help=words)
    add("-part_id", metavar="I", type=int, default=0, help="with -num_parts: the part, 0 to N-1")
    words = "with the other options as for the parts: put together what all parts found, instead of reading cases"
    add("--merge", action="store_true", help=words)


def part_of(given: argparse.Namespace) -> Part:
    """The part of the cases that a command is for.

    Raises:
        InputError: If the numbers of parts or processes are out of range.
    """
    check_processes(given.np)
    if given.merge and given.num_parts != 1:
        raise InputError("--merge puts all parts together; -num_parts is for each of them")
    return Part(number=given.part_id, of=given.num_parts)


def benchmark() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_benchmark`."""
    parser = _parser(
        "benchmark",
        "Compare stock nnU-Net and deferral trainings on the same folds: run missing trainings if "
        "requested, verify that all used the same data, and write benchmark.md, benchmark.csv and benchmark.json. "
        "Differences are relative to the first trainer.",
        "-d 501 -c 2d -f 0 1 2 -tr nnUNetTrainer nnUNetTrainerDeferral3Experts -o benchmark",
        "--run --report benchmark.html",
    )
    add = parser.add_argument
    add("-d", metavar="DATASET", required=True, help="dataset id or name")
    add("-c", metavar="CONFIGURATION", required=True, help="configuration, for example 2d")
    add("-f", metavar="FOLD", nargs="+", default=list(range(5)), help="folds. Default: 0 1 2 3 4")
    add("-tr", metavar="TRAINER", nargs="+", default=[], help="trainers. Default if a table is given: nnUNetTrainer")
    add("-p", metavar="PLANS", default="nnUNetPlans", help="plans of all trainers. Default: %(default)s")
    words = "append _Nepochs to trainer names (with --frozen, only in the tables); nnU-Net's default is 1000"
    add("-epochs", type=int, metavar="N", help=words)
    add("-o", metavar="OUT", type=Path, required=True, help="output folder")
    add("--report", metavar="HTML", type=Path, help="also write a self-contained HTML report with figures")
    tables = parser.add_argument_group("tables of the paper, on plans derived from -p where their settings differ")
    tables.add_argument("--ablation", action="store_true", help="Table 6: losses, with one and three experts")
    words = "Table C.8: weights of SC and LB. Default: 0.1 1 5 10"
    tables.add_argument("--grid", metavar="LAMBDA", type=float, nargs="*", help=words)
    tables.add_argument("--num_experts", metavar="J", type=int, nargs="+", help="Table D.10: numbers of experts")
    tables.add_argument("--experts", dest="num_experts", metavar="J", type=int, nargs="+", help=argparse.SUPPRESS)
    words = "in these tables, train only the heads, on the networks of the first stock trainer"
    tables.add_argument("--frozen", action="store_true", help=words)
    words = "set of simulated experts for --num_experts. Default: %(default)s"
    tables.add_argument("-expert_set", choices=EXPERT_SETS, default="scalability", help=words)
    running = parser.add_argument_group("running")
    running.add_argument("--run", action="store_true", help="run missing and unfinished trainings")
    words = "let trainings save the probabilities of their validation, which comparing with all raters takes"
    running.add_argument("--npz", action="store_true", help=words)
    words = "default: cuda if a GPU is available, else cpu"
    running.add_argument("-device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help=words)
    words = "where to run trainings: sequentially on this machine, or as jobs through submitit. Default: %(default)s"
    running.add_argument("-executor", choices=("here", "slurm", "local"), default="here", help=words)
    words = "submitit parameters of the jobs: slurm_partition=gpu gpus_per_node=1 cpus_per_task=12 timeout_min=2880"
    running.add_argument("-job", metavar="KEY=VALUE", nargs="+", default=[], help=words)
    running.add_argument("--time_prediction", action="store_true", help="time nnUNetv2_predict of every trainer")
    scoring = parser.add_argument_group("scoring")
    words = f"folder <expert>/<case> of masks, or a set ({', '.join(EXPERT_SETS)}). Default: those of the models"
    scoring.add_argument("-experts", metavar="EXPERTS", help=words)
    scoring.add_argument("-panel", dest="experts", metavar="EXPERTS", help=argparse.SUPPRESS)
    scoring.add_argument("-seed", type=int, help="seed of simulated experts. Default: evaluation_seed of the models")
    _add_resampling(scoring)
    return parser


def calibrate() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_calibrate`."""
    parser = _parser(
        "calibrate",
        "Calibrate the probabilities that model and experts are right, and fit thresholds that keep a "
        "budget over a dataset, on the model's validation cases; prediction then uses both. Requires a final "
        "validation with --npz.",
        "-d 501 -c 2d -f 0 1 2 3 4 -tr nnUNetTrainerDeferral3Experts_OvA -groups groups.json -budgets 0.01",
    )
    add = parser.add_argument
    add("-d", required=True, metavar="DATASET", help="dataset id or name")
    add("-c", required=True, metavar="CONFIGURATION", help="configuration")
    add("-f", nargs="+", default=[0, 1, 2, 3, 4], metavar="FOLD", help="folds. Default: 0 1 2 3 4")
    add("-tr", required=True, metavar="TRAINER", help="trainer")
    add("-p", default="nnUNetPlans", metavar="PLANS", help="plans. Default: %(default)s")
    add("-experts", metavar="SET", help="set of simulated experts. Default: those used in training")
    add("-groups", metavar="JSON", type=Path, help="maps each case to its group (patient), held out as a whole")
    add("-budgets", metavar="B", type=float, nargs="+", default=[], help="shares of all voxels to fit thresholds for")
    add(
        "-capacities", metavar="C", type=limit, nargs="+",
        help="maximum share of all voxels for each expert, or none for no limit; one value per expert",
    )  # fmt: skip
    add(
        "-min_region_mm", metavar="D", type=limit, nargs="+",
        help="smallest region that is deferred, as an equivalent diameter, or none for single voxels; several values "
        "fit thresholds for each. Default: that of the plans",
    )  # fmt: skip
    words = "answers replace the model's labels; do not fit how to read them as evidence"
    add("--replace", action="store_true", help=words)
    words = "the experts are anonymous readers, so that a name is a slot and not a person"
    add("--exchangeable", action="store_true", help=words)
    words = "do not try whether the heads rank voxels better combined with the model's confidence"
    add("--keep_heads", action="store_true", help=words)
    words = "also fit what predicts the Dice of each case and class without a reference; takes at least 10 cases"
    add("--predict_dice", action="store_true", help=words)
    words = "fit thresholds only; keep the calibration that the model has, and its thresholds for other budgets"
    add("--thresholds_only", action="store_true", help=words)
    add(
        "-certify", metavar=("X", "ALPHA"), type=float, nargs=2,
        help="hold half of the cases (patients) back from all fitting, and certify on them the smallest budget at "
        "which at most a share ALPHA of cases has a kept error (wrong voxels that nobody is asked about, per voxel of "
        "the reference's foreground) above X",
    )  # fmt: skip
    add("-confidence", metavar="C", type=float, help=f"confidence of the certificate. Default: {defaults.CONFIDENCE}")
    _add_parts(parser)
    return parser


def convert_dataset() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_convert_dataset`."""
    parser = _parser(
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
    _add_processes(parser)
    add("-task", type=int, choices=defaults.AMOS22_TASKS, help="amos22: 1 for CT only, 2 for CT and MRI. Default: 2")
    geometry = (
        "pair images and segmentations voxel by voxel even if their headers differ in spacing, origin or direction; "
        "required for some cases of LiTS"
    )
    add("--ignore_label_geometry", action="store_true", help=geometry)
    return parser


def demo() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_demo`."""
    parser = _parser(
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


def dicom() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_dicom`."""
    parser = _parser(
        "dicom",
        "Import DICOM series as images for nnU-Net, export predictions as DICOM segmentations and parametric maps into "
        "the same studies, and read experts' answers from edited segmentations.",
        "export -i predictions -map images -dicom series -o objects",
    )
    tasks = parser.add_subparsers(dest="task", metavar="TASK", required=True)
    mapped = "the dicom.json of the import, or its folder"

    words = "write each series as <case>_0000 and dicom.json, which maps cases to series"
    add = tasks.add_parser("import", help=words, description=_sentence(words)).add_argument
    add("-i", metavar="SERIES", type=Path, required=True, help="folder or zip file with a subfolder for each series")
    add("-o", metavar="IMAGES", type=Path, required=True, help="new folder for the images")
    words = "SeriesInstanceUIDs of the series to import. Default: all, which must be one in a folder"
    add("-series", metavar="UID", nargs="+", default=[], help=words)
    words = "cases are named PREFIX_ and ten digits that depend on the series' UID. Default: %(default)s"
    add("-prefix", default=defaults.DICOM_PREFIX, help=words)
    endings = defaults.DICOM_ENDINGS
    add("-ending", choices=endings, default=endings[0], help="format of the images. Default: %(default)s")

    words = "write OUT/<case>/mask.dcm, review.dcm, probability.dcm and gain.dcm"
    task = tasks.add_parser("export", help=words, description=_sentence(words))
    _add_predictions(task)
    add = task.add_argument
    add("-map", metavar="MAP", type=Path, required=True, help=mapped)
    add("-dicom", metavar="SERIES", type=Path, required=True, help="the folder or zip file that was imported")
    add("-o", metavar="OUT", type=Path, required=True, help="new output folder")
    what = defaults.DICOM_OBJECTS
    add("-what", nargs="+", choices=what, default=list(what), help=f"what to write. Default: {' '.join(what)}")
    kinds = defaults.DICOM_KINDS
    words = "type of the mask's segmentation; fractional takes saved probabilities. Default: %(default)s"
    add("-type", choices=kinds, default=kinds[0], help=words)
    _add_codes(task)
    _add_dataset_json(task)
    _add_work_time(task)

    words = "write edited segmentations as an expert's masks, OUT/<expert>/<case>"
    task = tasks.add_parser("answers", help=words, description=_sentence(words))
    _add_predictions(task, "the predictions that were exported")
    add = task.add_argument
    add("-map", metavar="MAP", type=Path, required=True, help=mapped)
    words = "edited mask.dcm or review.dcm files, or folders of them, one of each case"
    add("-seg", metavar="FILE", type=Path, nargs="+", required=True, help=words)
    add("-expert", required=True, help="who answered")
    add("-o", metavar="OUT", type=Path, required=True, help="folder of experts' masks, such as expertsTr")
    _add_codes(task)
    _add_dataset_json(task)
    add("--overwrite", action="store_true", help="replace existing answers of the expert")
    return parser


def _sentence(words: str) -> str:
    return f"{words[:1].upper()}{words[1:]}."


def _add_codes(parser: argparse.ArgumentParser) -> None:
    words = 'codes of the labels. Default: "dicom_codes" in dataset.json'
    parser.add_argument("-codes", metavar="JSON", type=Path, help=words)


def _add_work_time(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    words = f"working time for a look at a region. Default: {defaults.MINUTES_PER_REGION}"
    add("-minutes_per_region", type=float, metavar="M", help=words)
    words = f"working time for drawing a cm of border that is wrong. Default: {defaults.MINUTES_PER_CM}"
    add("-minutes_per_cm", type=float, metavar="M", help=words)
    words = "folder of nnUNetv2_deferral_review with at least 30 answered regions, to whose times both are fitted"
    add("-times_from", metavar="REVIEWS", type=Path, help=words)


def doctor() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_doctor`."""
    parser = _parser(
        "doctor",
        "Check whether a deferral training would start on this machine.",
    )
    parser.add_argument(
        "--trainers",
        action="store_true",
        help="only print the trainers' folder, for nnUNet_extTrainer",
    )
    return parser


def evaluate() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_evaluate`."""
    parser = _parser(
        "evaluate",
        "Evaluate predictions of a deferral model: Dice of model, experts and system, the effect of "
        "deferral, and the model's ranking of voxels compared with others at matched budgets.",
        "-i predictions -ref labelsTs -experts expertsTs -o evaluation --report evaluation/report.html",
    )
    add = parser.add_argument
    add("-ref", metavar="LABELS", type=Path, required=True, help="folder of the references")
    _add_predictions(parser)
    sets = f"a set of simulated experts ({', '.join(EXPERT_SETS)})"
    add("-experts", metavar="EXPERTS", help=f"folder of the experts' masks, or {sets}. Default: those used in training")
    add("-o", metavar="OUT", type=Path, required=True, help="output folder")
    add("-seed", type=int, help="seed of simulated experts. Default: evaluation_seed of the model's settings")
    add(
        "-error_model",
        choices=ERROR_MODEL_NAMES,
        help="error model of all simulated experts. Default: those of their profiles",
    )
    words = "with a folder of masks: simulate these experts of the training, who have no masks"
    add("-simulated", metavar="EXPERT", nargs="+", default=[], help=words)
    _add_dataset_json(parser)
    _add_resampling(parser)
    words = 'maps each case to its domain (hospital, scanner), to compare them; the training\'s own is "ID"'
    add("-domains", metavar="JSON", type=Path, help=words)
    words = "folders with masks of single folds, for failure detection by their disagreement. Default: those in "
    words += "PREDICTIONS, if it was predicted with nnUNet_deferral_folds=1"
    add("-folds", metavar="FOLDER", type=Path, nargs="+", default=[], help=words)
    _add_evidence(parser)
    words = "shares of voxels in [0, 1]"
    add("-budgets", metavar="B", type=float, nargs="+", default=list(defaults.BUDGETS), help=words)
    words = "also write a self-contained HTML report with figures; a name without a folder is placed in -o"
    add("--report", metavar="HTML", type=Path, help=words)
    add("-images", metavar="IMAGES", type=Path, help="folder of the images, to show some cases in the report")
    words = "also write the figures of the report to OUT/figures in these formats, with its tables in LaTeX"
    add("-figures", metavar="FORMAT", nargs="+", choices=("png", "svg", "pdf"), default=[], help=words)
    words = "also score surfaces: HD95, and the normalised surface distance with this tolerance in mm (png: pixels)"
    add("-surface_tolerance", metavar="MM", type=float, help=words)
    _add_parts(parser)
    return parser


def evaluate_raters() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_evaluate_raters`."""
    parser = _parser(
        "evaluate_raters",
        "Measure how well the probabilities of any nnU-Net model are calibrated to several raters, and the overlap "
        "of its masks with theirs. Requires predictions with --save_probabilities or a validation with --npz.",
        "-i predictions -raters expertsTs -ref labelsTs -o evaluation",
    )
    add = parser.add_argument
    _add_predictions(parser, "folder of masks and probabilities")
    add("-raters", metavar="RATERS", type=Path, required=True, help="folder <rater>/<case> of the raters' masks")
    add("-ref", metavar="LABELS", type=Path, help="folder of reference masks, for the Dice against them")
    add("-o", metavar="OUT", type=Path, required=True, help="output folder")
    _add_resampling(parser)
    _add_dataset_json(parser)
    return parser


def fuse() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_fuse`."""
    parser = _parser(
        "fuse",
        "Fuse the masks of a deferral model with those of its experts, voxel by voxel as routed. The "
        "experts' masks are EXPERTS/<expert>/<case>, with the names of the model's experts.",
        "-i predictions -experts expertsTs -o fused",
    )
    _add_predictions(parser)
    parser.add_argument("-experts", metavar="EXPERTS", type=Path, required=True, help="folder of the experts' masks")
    parser.add_argument("-o", metavar="OUT", type=Path, required=True, help="output folder for the fused masks")
    _add_dataset_json(parser)
    _add_evidence(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace existing masks")
    _add_parts(parser)
    return parser


def next_dataset() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_next_dataset`."""
    parser = _parser(
        "next_dataset",
        "Make answers the training data of a new dataset in nnUNet_raw: the labels of the voxels that were "
        "asked about and answered, and the ignore label elsewhere, with splits and a record of who answered what.",
        "-i round_0 round_1 -answers labels -images imagesPool -o Dataset512_Round2",
    )
    add = parser.add_argument
    words = "rounds of nnUNetv2_deferral_query, or one folder of predictions by a deferral model"
    add("-i", metavar="QUESTIONS", type=Path, nargs="+", required=True, help=words)
    words = "folder of masks: <expert>/<case>, for rounds of queries also <case>"
    add("-answers", metavar="ANSWERS", type=Path, required=True, help=words)
    add("-images", metavar="IMAGES", type=Path, required=True, help="folder of the images (<case>_0000)")
    add("-o", metavar="DATASET", required=True, help="name of the new dataset, DatasetXXX_Name")
    words = "a dataset whose cases are taken over; answers replace its labels"
    add("-base", metavar="DATASET", help=words)
    words = "maps each case to its group (patient), which is not divided between training and validation"
    add("-groups", metavar="JSON", type=Path, help=words)
    add("-djfile", metavar="DATASET_JSON", type=Path, help="the dataset.json of the questions. Default: beside them")
    return parser


def next_round() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_next_round`."""
    parser = _parser(
        "next_round",
        "Decide what to ask next, given the answers to a prediction's questions. Requires a calibration "
        "that reads answers as evidence.",
        "-i predictions -answers expertsTs -o predictions2 -budget 0.005 -most 2",
    )
    add = parser.add_argument
    _add_predictions(parser)
    add("-answers", metavar="EXPERTS", type=Path, required=True, help="folder of the masks of the experts who answered")
    add("-o", metavar="OUT", type=Path, required=True, help="new folder for the predictions with the next questions")
    add("-budget", metavar="B", type=float, required=True, help="share of all voxels to ask about in this round")
    words = "number of experts that may be asked about a voxel in all rounds together. Default: %(default)s"
    add("-most", metavar="K", type=int, default=1, help=words)
    _add_dataset_json(parser)
    return parser


def plan_experiment() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_plan_experiment`."""
    parser = _parser(
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
    parser = _parser(
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


def query() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_query`."""
    parser = _parser(
        "query",
        "Choose which boxes of which images to annotate next, from the predictions of one or several folds "
        "with saved probabilities. Writes query.json and masks of the boxes.",
        "-i predictions/fold_0 predictions/fold_1 -o round_1 -n 100 -round 1 -annotated round_0",
    )
    add = parser.add_argument
    words = "folders of predictions of the same cases, one per fold, by nnUNetv2_predict --save_probabilities"
    add("-i", metavar="PREDICTIONS", type=Path, nargs="+", required=True, help=words)
    add("-o", metavar="ROUND", type=Path, required=True, help="new folder for query.json and masks of the boxes")
    add("-n", metavar="N", type=int, help="number of boxes; with -max_minutes at most so many, and by default no limit")
    words = "with -strategy gain: working time for all boxes. Default: no limit"
    add("-max_minutes", metavar="M", type=float, help=words)
    _add_work_time(parser)
    add("-round", metavar="T", type=int, default=0, help="number of this round, from 0. Default: %(default)s")
    words = "number of rounds that are planned, over which noise decays. Default: %(default)s"
    add("-rounds", metavar="T", type=int, default=defaults.QUERY_ROUNDS, help=words)
    words = "how boxes are chosen; gain needs a folder with deferral maps. Default: %(default)s"
    add("-strategy", choices=defaults.QUERY_STRATEGIES, default=defaults.QUERY_STRATEGIES[0], help=words)
    words = (
        "with -strategy gain: boxes of one size, those of the deferred regions, or whole cases. Default: %(default)s"
    )
    add("-per", choices=defaults.QUERY_UNITS, default=defaults.QUERY_UNITS[0], help=words)
    size = parser.add_mutually_exclusive_group()
    words = f"edges of a box in voxels, z y x or y x. Default: {defaults.QUERY_EDGE_VOXELS} along each axis"
    size.add_argument("-patch", metavar="VOXELS", type=int, nargs="+", help=words)
    size.add_argument("-patch_mm", metavar="MM", type=float, nargs="+", help="edges of a box in mm, z y x or y x")
    words = "distance of neighbouring positions of a box in voxels, z y x or y x. Default: half of the edges"
    add("-stride", metavar="VOXELS", type=int, nargs="+", help=words)
    words = "folders of earlier rounds, whose boxes are not asked about again"
    add("-annotated", metavar="ROUND", type=Path, nargs="+", default=[], help=words)
    add("-seed", type=int, default=0, help="seed of all random choices. Default: %(default)s")
    _add_dataset_json(parser)
    add("--overwrite", action="store_true", help="replace a round in the output folder")
    _add_parts(parser)
    answered = parser.add_argument_group("studies in which the images are annotated already")
    words = (
        "also write the dataset DatasetXXX_Name of this and all -annotated rounds, as nnUNetv2_deferral_next_dataset"
    )
    answered.add_argument("--next_dataset", metavar="DATASET", help=words)
    answered.add_argument("-answers", metavar="LABELS", type=Path, help="for it: folder of masks")
    answered.add_argument("-images", metavar="IMAGES", type=Path, help="for it: folder of the images (<case>_0000)")
    return parser


def review() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_review`."""
    parser = _parser(
        "review",
        "Serve a page on this machine where experts annotate the deferred regions, and print a link for "
        "each expert. Writes REVIEWS/<expert>/<case> in the layout of expertsTr. Requires the extra [review].",
        "-i predictions -images imagesTs -o reviews",
    )
    _add_predictions(parser)
    parser.add_argument("-images", metavar="IMAGES", required=True, help="folder of the predicted images")
    parser.add_argument("-ref", metavar="LABELS", help="folder of reference masks, for the coordinator's scores")
    parser.add_argument(
        "-worklist", metavar="LIST", help="folder of nnUNetv2_deferral_worklist: ask about its regions only"
    )
    parser.add_argument(
        "-o", metavar="REVIEWS", required=True, help="output folder for the answers; an existing review is continued"
    )
    _add_dataset_json(parser)
    words = "experts who read each region without seeing each other, 1 or 2. Default: %(default)s"
    parser.add_argument("-readers_per_region", metavar="N", type=int, choices=(1, 2), default=1, help=words)
    words = "with two readers: who decides where they differ; a name other than the experts'. Default: nobody"
    parser.add_argument("-adjudicator", metavar="NAME", help=words)
    words = "with two readers: largest difference of readers who agree, in [0, 1]. Default: %(default)s"
    parser.add_argument("-max_difference", metavar="D", type=float, default=defaults.MAX_DIFFERENCE, help=words)
    words = "its measure: share of the region's voxels, or 1 - Dice. Default: %(default)s"
    parser.add_argument(
        "-difference", choices=defaults.READING_MEASURES, default=defaults.READING_MEASURES[0], help=words
    )
    parser.add_argument("--port", type=int, default=defaults.PORT, help=f"port on 127.0.0.1. Default: {defaults.PORT}")
    words = "address under which a proxy on this machine serves the page, such as https://review.example.org/lung"
    parser.add_argument("--public_url", metavar="URL", help=words)
    words = "address of the proxy, such as 127.0.0.1, whose X-Forwarded-For is believed in the log. Default: nobody's"
    parser.add_argument("--proxy", metavar="ADDRESS", help=words)
    words = "links expire after this number of days; the next start makes new ones. Default: never"
    parser.add_argument("--valid_days", metavar="DAYS", type=float, help=words)
    words = "make new links for these people; those that they have, and sessions begun with them, end"
    parser.add_argument("--revoke", metavar="NAME", nargs="+", default=[], help=words)
    words = "file to which one JSON line is added for each request, without names of cases"
    parser.add_argument("--access_log", metavar="FILE", type=Path, help=words)
    parser.add_argument("--show_scores", action="store_true", help="show reference and scores to experts, too")
    words = "hide the model's mask from an expert until they have submitted the case; painting starts from nothing"
    parser.add_argument("--blind_start", action="store_true", help=words)
    return parser


def route() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_route`."""
    parser = _parser(
        "route",
        "Decide what to ask about without another prediction: with another budget from the maps of a deferral model, "
        "and from saved probabilities (--save_probabilities) with any limits, or for a stock network that was "
        "calibrated.",
        "-i predictions -o predictions2 -budget 0.02",
    )
    add = parser.add_argument
    _add_predictions(parser, "folder of masks with deferral maps or probabilities")
    add("-o", metavar="OUT", type=Path, required=True, help="new folder for masks and deferral maps")
    add("-m", metavar="MODEL", type=Path, help="for a stock network: its model folder, which contains plans.json")
    add("-budget", metavar="B", type=float, help="share of the voxels that may be deferred. Default: no limit")
    words = "maximum share of the voxels for each expert, or none; one value per expert"
    add("-capacities", metavar="C", type=limit, nargs="+", help=words)
    add("-over", choices=OVER, default=OVER[0], help="shares of each case, or of all. Default: %(default)s")
    add("-min_region_mm", metavar="D", type=float, help="equivalent diameter of the smallest region")
    words = "working time for all cases: of what the other limits allow, the regions with the most gain per minute"
    add("-minutes", metavar="M", type=float, help=words)
    _add_work_time(parser)
    _add_dataset_json(parser)
    return parser


def run() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_run`."""
    parser = _parser(
        "run",
        "Predict, evaluate and list an archive in parts that run as jobs of this machine or of a SLURM cluster. "
        "A repeated call does only what is missing.",
        "-i imagesTs -o archive -steps predict worklist -num_parts 8",
        '-predict "-d 501 -c 2d -f 0 -tr nnUNetTrainerDeferral3Experts" -worklist "--no_pictures -max_regions 500"',
        "-executor slurm -job slurm_partition=gpu gpus_per_node=1",
        quoted=("-predict", "-evaluate", "-worklist"),
    )
    add = parser.add_argument
    add("-i", metavar="IMAGES", type=Path, required=True, help="folder of the images (<case>_0000)")
    add("-o", metavar="OUT", type=Path, required=True, help="output folder")
    words = "what to do, in this order. Default: predict worklist"
    steps = ("predict", "evaluate", "worklist")
    add("-steps", nargs="+", choices=steps, default=["predict", "worklist"], help=words)
    add("-num_parts", metavar="N", type=int, default=1, help="number of parts of the cases. Default: 1")
    for step, command in zip(steps, ("nnUNetv2_predict", f"{PREFIX}evaluate", f"{PREFIX}worklist"), strict=True):
        words = f"options of {command} as one quoted text, without -i and -o"
        add(f"-{step}", metavar="OPTIONS", default="", help=words)
    executors = ("local", "slurm", "submitit_local")
    words = "where jobs run: as processes of this machine, or through submitit. Default: %(default)s"
    add("-executor", choices=executors, default="local", help=words)
    add("-jobs", metavar="K", type=int, default=1, help="with -executor local: jobs at the same time. Default: 1")
    words = "with the other executors: submitit's parameters, such as slurm_partition=gpu mem_gb=32 timeout_min=600"
    add("-job", metavar="KEY=VALUE", nargs="+", default=[], help=words)
    return parser


def shift() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_shift`."""
    parser = _parser(
        "shift",
        "Copy images as another scanner or protocol might have taken them, to test a model under shift. Writes the "
        "images and their shifted copies to OUT/images, with the references and experts' masks under the same names, "
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
    _add_processes(parser)
    return parser


def simulate_experts() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_simulate_experts`."""
    parser = _parser(
        "simulate_experts",
        "Simulate experts for a folder of reference labels. Writes OUT/expert1/<case>, OUT/expert2/<case>, "
        "... in the format of the labels. The answers are reproducible and do not depend on the number of processes.",
        "-i labelsTs -djfile dataset.json -o expertsTs",
    )
    parser.add_argument("-i", metavar="LABELS", required=True, help="folder with the reference label files")
    parser.add_argument("-djfile", metavar="DATASET_JSON", required=True, help="the dataset.json of these labels")
    parser.add_argument("-o", metavar="OUT", required=True, help="output folder, for example expertsTr of the dataset")
    sets = f"set of expert profiles: {', '.join(EXPERT_SETS)}. Default: standard up to 3 experts, else scalability"
    parser.add_argument("-experts", metavar="SET", help=sets)
    parser.add_argument("-num_experts", metavar="J", type=int, default=3, help="number of experts. Default: 3")
    parser.add_argument("-seed", type=int, default=0, help="random seed of the errors. Default: 0")
    _add_processes(parser)
    _add_separate_parts(parser, "simulate")
    width = f"depth of the boundary band on each side of a label change. Default: {defaults.BOUNDARY_WIDTH}"
    parser.add_argument("-boundary_width", metavar="VOXELS", type=int, default=defaults.BOUNDARY_WIDTH, help=width)
    voxel = "edge of the voxels that band and correlation of errors are measured in. Default: those of the label files"
    parser.add_argument("-voxel_mm", dest="expert_voxel_mm", metavar="MM", type=float, help=voxel)
    error_model = "error model of all experts. Default: those of their profiles"
    parser.add_argument("-error_model", choices=ERROR_MODEL_NAMES, help=error_model)
    parser.add_argument("--overwrite", action="store_true", help="replace existing answers")
    return parser


def uncertainty() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_uncertainty`: the options of `nnUNetv2_predict`, which are passed on to it."""
    parser = _parser(
        "uncertainty",
        "Predict with an ensemble of folds of any model, as nnUNetv2_predict does and with its options, and also "
        "write the mask of each fold (OUT/deferral/folds/<fold>) and the mutual information of the folds "
        "(OUT/deferral/mutual_information), without predicting more than once. With a single fold, those of its "
        "mirrored predictions, which takes twice the time.",
        "-d 501 -c 2d -f 0 1 2 3 4 -i imagesTs -o predictions",
    )
    add = parser.add_argument
    add("-i", metavar="IMAGES", type=Path, required=True, help="folder of images (<case>_0000)")
    add("-o", metavar="OUT", type=Path, required=True, help="output folder")
    add("-d", metavar="DATASET", required=True, help="dataset id or name")
    add("-p", metavar="PLANS", default="nnUNetPlans", help="plans. Default: %(default)s")
    add("-tr", metavar="TRAINER", default="nnUNetTrainer", help="trainer. Default: %(default)s")
    add("-c", metavar="CONFIGURATION", required=True, help="configuration, for example 2d")
    words = "folds; a single one is compared with itself mirrored. Default: 0 1 2 3 4"
    add("-f", metavar="FOLD", nargs="+", default=[str(fold) for fold in range(5)], help=words)
    add("-step_size", metavar="S", type=float, default=0.5, help="step of the sliding window. Default: %(default)s")
    add("--disable_tta", action="store_true", help="predict without mirroring")
    add("--verbose", action="store_true", help="print more")
    add("--save_probabilities", action="store_true", help="also save the ensemble's probabilities")
    words = "only predict what is missing: masks of the ensemble or of its folds"
    add("--continue_prediction", action="store_true", help=words)
    add("-chk", metavar="FILE", default="checkpoint_final.pth", help="name of the checkpoint. Default: %(default)s")
    add("-npp", metavar="N", type=int, help="processes for preprocessing. Default: as nnUNetv2_predict")
    words = "processes for export; with -npp 0 -nps 0 all is done in one process. Default: as nnUNetv2_predict"
    add("-nps", metavar="N", type=int, help=words)
    words = "for a cascade, folder of the predictions of the previous stage"
    add("-prev_stage_predictions", metavar="FOLDER", help=words)
    _add_separate_parts(parser, "predict")
    add("-device", choices=("cpu", "cuda", "mps"), default="cuda", help="default: cuda")
    add("--disable_progress_bar", action="store_true", help="print no progress")
    words = "keep the logits of a case in main memory, not in that of the device"
    add("--not_on_device", action="store_true", help=words)
    return parser


def worklist() -> argparse.ArgumentParser:
    """Of `nnUNetv2_deferral_worklist`."""
    parser = _parser(
        "worklist",
        "List the deferred regions in the order of their expected gain per minute of work, with a picture of each, "
        "and masks that any viewer can open.",
        "-i predictions -images imagesTs -o worklist -max_minutes 60",
    )
    add = parser.add_argument
    _add_predictions(parser)
    add("-images", metavar="IMAGES", type=Path, help="folder of the images (<case>_0000), for the pictures")
    add("-o", metavar="LIST", type=Path, required=True, help="output folder for list, pictures and masks")
    _add_work_time(parser)
    add("-max_regions", type=int, metavar="N", help="maximum number of regions. Default: no limit")
    add("-max_minutes", type=float, metavar="M", help="maximum total working time. Default: no limit")
    _add_dataset_json(parser)
    add("--overwrite", action="store_true", help="replace an existing worklist")
    add("--no_pictures", action="store_true", help="write no pictures; images are then not needed")
    _add_parts(parser)
    words = "also write points for 3D Slicer (.mrk.json) and a task list for MITK to LIST/viewers; takes -images"
    add("--viewers", action="store_true", help=words)
    return parser

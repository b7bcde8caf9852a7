"""Writers that are killed or run out of disk space: `disturbed_writers.py WRITER FOLDER kill|disk NUMBER SEED`.

The commands run as forked copies of a process that has imported everything, because starting one takes ten seconds.
Prints a JSON list of faults; `tests/test_disturbed_writers.py` calls this.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
DISK_BYTES = 2 * 2**20


class Writer(NamedTuple):
    """What is tried.

    Attributes:
        prepare: Fills a folder with the inputs.
        run: Writes; the working directory is the folder.
        written: The folder that it writes to, inside of the folder.
        again: As `run`, for the call after a kill.
    """

    prepare: Callable[[Path], None]
    run: Callable[[], None]
    written: str
    again: Callable[[], None] | None = None


def _other(name: str, folder: str):
    """A module of another folder of tests."""
    sys.path.insert(0, str(HERE / folder))
    return importlib.import_module(name)


def _study(root: Path) -> None:
    _other("small_prediction", ".").write_study(root)
    (root / "out").mkdir()


def _command(name: str, *words: str) -> Callable[[], None]:
    def run() -> None:
        for variable in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{variable}"] = str(Path(variable).resolve())
        importlib.import_module(f"nnunetv2_deferral.commands.{name}").main([*words])

    return run


def _raters(root: Path) -> None:
    made = _other("small_dataset", ".").make_dataset(root)
    made.declare("ann", "bob")
    made.copy_reference("ann")
    made.copy_reference("bob")
    (root / "results").mkdir()


def _validated(root: Path) -> None:
    _other("test_calibrate", "commands").Workplace(root)


def _compared(root: Path) -> None:
    """Two models that are trained, for a benchmark."""
    made = _other("made_up_workplace", "benchmark")
    importlib.import_module("pytest")
    here = made.Workplace(root)
    for variable, folder in here.variables.items():
        Path(folder).mkdir(parents=True, exist_ok=True)
        os.environ[variable] = folder
    for folder in (here.preprocessed / "gt_segmentations", here.preprocessed / "nnUNetPlans_2d", here.raw):
        folder.mkdir(parents=True)
    content = {"channel_names": {"0": "image"}, "labels": made.LABELS, "numTraining": 6, "file_ending": ".png"}
    for folder in (here.preprocessed, here.raw):
        (folder / "dataset.json").write_text(json.dumps(content))
    (here.preprocessed / "dataset_fingerprint.json").write_text(json.dumps({"spacings": [[1, 1]] * 6}))
    (here.preprocessed / "splits_final.json").write_text(json.dumps(made.SPLITS))
    made.write_plans(here, "nnUNetPlans")
    for number, case in enumerate(made.CASES):
        made.write(here.preprocessed / "gt_segmentations" / f"{case}.png", made.disc(number))
        (here.preprocessed / "nnUNetPlans_2d" / f"{case}.pkl").write_bytes(b"")
    here.write_model(made.STOCK)
    here.write_model(made.DEFERRAL, route=lambda reference, mask: reference != mask)
    (root / "out").mkdir()


def _to_train(root: Path) -> None:
    _compared(root)
    made = _other("made_up_workplace", "benchmark")
    made.Workplace(root).experiment().model(made.STOCK).rename(root / "finished")
    shutil.rmtree(root / "out")


def _train() -> None:
    made = _other("made_up_workplace", "benchmark")
    running = importlib.import_module("nnunetv2_deferral.benchmark.running")
    here = made.Workplace(Path.cwd())
    os.environ.update(here.variables)
    running.run_trainings(
        [
            made.FakeTraining(
                experiment=here.experiment(),
                method=made.STOCK,
                fold=fold,
                cases=tuple(made.SPLITS[fold]["val"]),
                device="cpu",
                logs=here.root / "logs",
            )
            for fold in (0, 1)
        ]
    )


def _train_when_free() -> None:
    """A training whose benchmark was killed goes on by itself; wait for its end, as the message says."""
    error = importlib.import_module("nnunetv2_deferral.benchmark.training").TrainingError
    for _ in range(600):
        try:
            return _train()
        except error as refused:
            if "already being trained" not in str(refused):
                raise
            time.sleep(0.1)
    raise AssertionError("the training does not end")


def _images(root: Path) -> None:
    numpy = importlib.import_module("numpy")
    small = _other("small_prediction", ".")
    for number in range(3):
        image = numpy.random.default_rng(number).integers(0, 200, (4, 32, 32)).astype(numpy.uint8)
        small.write_mask(root / "images" / f"c{number}_0000.nii.gz", image)
    (root / "out").mkdir()


def _predict() -> None:
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    predictor = _other("small_predictor", ".").small_predictor()
    for hooks in ("trainer", "export"):
        importlib.import_module(f"nnunetv2_deferral.nnunet.{hooks}")
    predictor.predict_from_files_sequential("images", "out", save_probabilities=False, overwrite=True)


def _review_folders(root: Path) -> None:
    _other("small_review", "review").write_volumes(root)
    (root / "reviews").mkdir()


def _review() -> None:
    """Three saves of each answer and its submission, each continued from what the server says is saved."""
    small = _other("small_review", "review")
    folders = small.Folders(*(Path(name) for name in ("predictions", "images", "labels", "reviews")))
    try:
        served = small.serve_folders(folders)
    except (OSError, importlib.import_module("nnunetv2_deferral.errors").InputError) as error:
        raise SystemExit(str(error)) from None
    for expert in small.EXPERTS:
        browser = served.browser(expert)
        for case in ("case_a", "case_b"):
            said = browser.get(f"/api/cases/{case}").json()
            voxels = served.review.study.asked(case, expert).voxels
            while not said["submitted"] and said["revision"] < 3:
                number = said["revision"]
                done = [*range(1, len(said["regions"]) + 1)] if number == 2 else []
                saved = browser.save(case, number, [[int(voxels[number]), 1, number % 2]], done, f"key{number}" * 3)
                _saved(saved)
                said = browser.get(f"/api/cases/{case}").json()
            if not said["submitted"]:
                answer = browser.post(f"/api/cases/{case}/submit", json={"revision": 3})
                _saved(answer)
    served.review.store.close()


def _saved(answer) -> None:
    if answer.status_code == 507:
        raise SystemExit(answer.text)
    assert answer.status_code == 200, answer.text


DATA = ("-i", "in", "-o", "out")
WRITERS = {
    "predict": Writer(_images, _predict, "out"),
    "preprocess_experts": Writer(
        _raters, _command("preprocess_experts", "-d", "701", "-np", "1"), "preprocessed/Dataset701_Small"
    ),
    "fuse": Writer(_study, _command("fuse", *DATA, "-experts", "experts"), "out"),
    "evaluate": Writer(_study, _command("evaluate", *DATA, "-ref", "labels", "-experts", "experts"), "out"),
    "calibrate": Writer(
        _validated,
        _command("calibrate", "-d", "903", "-c", "2d", "-f", "0", "1", "-tr", "nnUNetTrainerDeferral_OvA"),
        "results/Dataset903_MadeUp/nnUNetTrainerDeferral_OvA__nnUNetPlans__2d",
    ),
    "worklist": Writer(_study, _command("worklist", *DATA, "-images", "images"), "out"),
    "simulate_experts": Writer(
        _study, _command("simulate_experts", "-i", "labels", "-djfile", "in/dataset.json", "-o", "out"), "out"
    ),
    "review": Writer(_review_folders, _review, "reviews"),
    "benchmark": Writer(
        _compared,
        _command(
            "benchmark", "-d", "901", "-c", "2d", "-f", "0", "1", "-o", "out", "-tr", "nnUNetTrainer_5epochs",
            "nnUNetTrainerDeferral3Experts_5epochs", "--report", "out/report.html",
        ),
        "out",
    ),
    "trainings": Writer(_to_train, _train, "results/Dataset901_Made", _train_when_free),
}  # fmt: skip
# What differs between two undisturbed runs: times, dates, secrets and the record of calls.
_DIFFERS = re.compile(rb"\d{4}-\d\d-\d\d[T ]?[\d:.+]*|\"(seconds|minutes|time)\": ?[\d.]+")
_NOT_COMPARED = re.compile(r"calls\.txt$|\.pth$|\.lock$|\.log$|/\.review/|access\.json|training_log|filler")
# What names the files that are there so far.
_GROWS = re.compile(r"/(review|deferral|\.unfinished_files)\.json$")

# Written in place by stock nnU-Net, which shows the error of the operating system with its traceback.
_STOCK = {"predict": re.compile(r"/(plans|dataset|predict_from_raw_data_args)\.json$")}


def start(run: Callable[[], None], folder: Path, log: Path) -> int:
    """Run in a forked process of its own group."""
    if process := os.fork():
        return process
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        with log.open("wb") as stream:
            os.dup2(stream.fileno(), 1)
            os.dup2(stream.fileno(), 2)
        run()
        code = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        importlib.import_module("traceback").print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(process: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def files_of(folder: Path) -> dict[str, bytes]:
    """The content of all files, hidden ones included, as far as it is the same in two undisturbed runs."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = f"/{file.relative_to(folder)}"
        if file.is_file() and not _NOT_COMPARED.search(name):
            found[name] = _DIFFERS.sub(b"", file.read_bytes())
    return found


def differing(found: dict[str, bytes], whole: dict[str, bytes]) -> str:
    words = [f"lacks {name}" for name in whole if name not in found]
    words += [f"also has {name}" for name in found if name not in whole]
    words += [f"differs in {name}" for name in whole if name in found and found[name] != whole[name]]
    return ", ".join(words[:5])


class Trial:
    """A writer in a folder, with what an undisturbed run of it leaves."""

    def __init__(self, name: str, folder: Path) -> None:
        self.writer = writer = WRITERS[name]
        self.stock = _STOCK.get(name)
        self.template, self.work = folder / "template", folder / "work"
        self.log = folder / "log.txt"
        self.template.mkdir(parents=True)
        # In another process, so that this one has no threads.
        if code := ended(start(functools.partial(writer.prepare, self.template), self.template, self.log)):
            raise SystemExit(f"the inputs cannot be made ({code}): {self.log.read_text()}")
        self.whole: dict[str, bytes] = {}
        for _ in range(2):  # the second shows what differs, and how long it takes with all imports done
            self.fresh()
            begin = time.monotonic()
            if code := ended(start(writer.run, self.work, self.log)):
                raise SystemExit(f"an undisturbed run ends with {code}: {self.log.read_text()}")
            self.seconds = time.monotonic() - begin
            found = files_of(self.written)
            if self.whole and (words := differing(found, self.whole)):
                raise SystemExit(f"two undisturbed runs differ: {words}")
            self.whole = found

    @property
    def written(self) -> Path:
        return self.work / self.writer.written

    def fresh(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.template, self.work)

    def again(self, what: str) -> list[str]:
        """The same call once more; what is wrong after it."""
        code = ended(start(self.writer.again or self.writer.run, self.work, self.log))
        words, said = differing(files_of(self.written), self.whole), self.log.read_text(errors="replace")[-1500:]
        # A call that was disturbed after its last file is refused as a second call is.
        if words or code not in (0, 2):
            return [f"{what}: exit code {code}, {words}: {said}"]
        return [f"{what}: a traceback: {said}"] if "Traceback" in said else []


def kill(trial: Trial, number: int, generator: random.Random) -> list[str]:
    """Kill a run at random times, once each, and repeat it; on a busy machine half of the kills may come too late."""
    faults, killed, tries = [], 0, 0
    while killed < number and tries < 3 * number:
        tries += 1
        trial.fresh()
        process = start(trial.writer.run, trial.work, trial.log)
        # Half of the time in the last quarter, because files move to their places at the end.
        moment = trial.seconds * generator.choice([generator.random(), 0.75 + 0.25 * generator.random()])
        time.sleep(moment)
        os.kill(process, signal.SIGKILL)
        if ended(process) != -signal.SIGKILL:
            trial.seconds = min(trial.seconds, moment)  # the machine was busier when they were measured
            continue
        killed += 1
        faults += trial.again(f"killed after {moment:.3f} of {trial.seconds:.3f} s")
    print(f"{killed} kills", file=sys.stderr)
    return faults if killed >= number // 2 else [*faults, f"only {killed} of {number} runs were killed in time"]


def fill_disk(trial: Trial, number: int, generator: random.Random) -> list[str]:
    """Run on a file system of 2 MiB that is full but for some bytes; then free it and run again."""
    faults, met = [], 0
    for _ in range(number):
        trial.fresh()
        held = trial.work / "held"
        trial.written.rename(held)
        trial.written.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", trial.written], check=True)
        try:
            shutil.copytree(held, trial.written, dirs_exist_ok=True)
            before = files_of(trial.written)
            left = generator.choice([0, 4096, 8192, 12288, 16384, 24576, 32768, 65536])
            filler = trial.written / "filler"
            with contextlib.suppress(OSError), filler.open("wb", buffering=0) as stream:
                while stream.write(bytes(4096)):
                    pass
            with contextlib.suppress(OSError):
                os.truncate(filler, max(0, filler.stat().st_size - left))
            code = ended(start(trial.writer.run, trial.work, trial.log))
            said, after = trial.log.read_text(errors="replace")[-1500:], files_of(trial.written)
            if code:
                met += 1
                traceback = "Traceback" in said and trial.stock is None
                if traceback or not re.search("space|full|cannot be written", said):
                    faults.append(f"with {left} bytes: exit code {code}: {said}")
                cut = [
                    name for name, content in after.items() if content not in (before.get(name), trial.whole.get(name))
                ]
                for name in filter(_GROWS.search, after):
                    json.loads((trial.written / name[1:]).read_text())
                if cut := [
                    name for name in cut if not (_GROWS.search(name) or (trial.stock and trial.stock.search(name)))
                ]:
                    faults.append(f"with {left} bytes: incomplete {cut[:5]}")
                if lost := [name for name in before if name not in after]:
                    faults.append(f"with {left} bytes: lost {lost[:5]}")
            filler.unlink(missing_ok=True)
            faults += trial.again(f"after {left} bytes, now with space")
        finally:
            subprocess.run(["umount", trial.written], check=True)
    print(f"{met} full disks of {number}", file=sys.stderr)
    return faults


def main() -> None:
    name, folder, how, number, seed = sys.argv[1:]
    sys.path.insert(0, str(HERE))
    for command in ("fuse", "evaluate", "worklist", "simulate_experts", "preprocess_experts", "calibrate", "benchmark"):
        if name in (command, "trainings"):
            importlib.import_module(f"nnunetv2_deferral.commands.{command}")
    if name == "review":
        _other("small_review", "review")
    if name == "predict":
        _other("small_predictor", ".")
        importlib.import_module("nnunetv2_deferral.nnunet.export")
    trial = Trial(name, Path(folder).resolve())
    disturb = {"kill": kill, "disk": fill_disk}[how]
    generator = random.Random(int(seed))  # noqa: S311
    print(json.dumps(disturb(trial, int(number), generator)))


if __name__ == "__main__":
    main()

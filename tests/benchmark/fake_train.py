"""In place of nnUNetv2_train: `fake_train.py FOLD FINISHED_FOLD OPTIONS...`.

Each call is entered into FOLD/calls.txt. A file `behaviour.txt` beside the finished folds changes what happens: `fail`
ends with an error after the first epoch, `slow` takes so long for its second epoch that it is ended before.
"""

import shutil
import sys
import time
import zipfile
from pathlib import Path


def write_checkpoint(file, epoch):
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("epoch", str(epoch))


fold, finished, options = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
fold.mkdir(parents=True, exist_ok=True)
behaviour = finished.parent / "behaviour.txt"
behaviour = behaviour.read_text() if behaviour.is_file() else ""
for name in ("plans.json", "dataset.json", "dataset_fingerprint.json"):
    shutil.copy(finished.parent / name, fold.parent)
latest, final = fold / "checkpoint_latest.pth", fold / "checkpoint_final.pth"
begin = 0
if "--c" in options:
    with zipfile.ZipFile(latest) as archive:
        begin = int(archive.read("epoch")) + 1
with (fold / "calls.txt").open("a") as calls:
    calls.write(f"{' '.join(option for option in options if option.startswith('--')) or 'start'} at epoch {begin}\n")
if "--val" not in options:
    for epoch in range(begin, 3):
        print(f"2026-11-21 11:29:30: Epoch {epoch} ", flush=True)
        if behaviour == "slow" and epoch > 0:
            time.sleep(900)
        write_checkpoint(latest, epoch)
        print("Epoch time: 1.0 s")
        if behaviour == "fail":
            sys.exit("the batch is too large for this GPU")
    write_checkpoint(final, 3)
    latest.unlink()
    print("2026-11-21 11:29:33: Training done. ", flush=True)
if behaviour != "no validation":
    shutil.copytree(finished / "validation", fold / "validation", dirs_exist_ok=True)

"""From a prediction to the list of regions to look at, file by file."""

import csv
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
import small_prediction
from made_once import made_once
from matplotlib.image import imread
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from scattered import SHAPES, scattered_route
from skimage.io import imsave
from small_prediction import WrittenCase, deferral_folder, read_mask, write_mask, write_prediction

from nnunetv2_deferral import maps
from nnunetv2_deferral.commands.worklist import main
from nnunetv2_deferral.decision.effort import WorkTime
from nnunetv2_deferral.decision.regions import region_labels
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.parts import Part
from nnunetv2_deferral.predictions import PredictionFolder
from nnunetv2_deferral.worklist.items import columns
from nnunetv2_deferral.worklist.table import ROW
from nnunetv2_deferral.worklist.writing import same_for_all_parts, write_worklist

ENDINGS = (".nii.gz", ".png")
EXPERTS = ("ann", "bob")
OBLIQUE = np.linalg.qr(np.array([[0.9, -0.3, 0.2], [0.35, 0.9, -0.1], [-0.1, 0.2, -0.97]]))[0]


@pytest.fixture(params=ENDINGS)
def ending(request):
    return request.param


@pytest.fixture(autouse=True)
def oblique(monkeypatch):
    """Volumes that lie oblique in the patient."""
    itk = small_prediction.GEOMETRY["sitk_stuff"] | {"direction": tuple(OBLIQUE.ravel().tolist())}
    monkeypatch.setattr(small_prediction, "GEOMETRY", small_prediction.GEOMETRY | {"sitk_stuff": itk})


def write_input(root, ending=".nii.gz", *, cases=("x", "y"), deferred=True):
    """A prediction with many regions, or with none, and the images."""
    how = (ending, tuple(cases), deferred)
    return made_once(root, ("worklist", how, small_prediction.GEOMETRY), lambda made: _write_input(made, *how))


def _write_input(root, ending, cases, deferred):
    folder, shape, written = root / "in", SHAPES.get(ending, SHAPES[".png"]), {}
    write_prediction(folder, ending=ending, cases=())  # dataset.json
    (root / "images").mkdir()
    deferral = deferral_folder(folder, ending, EXPERTS)
    for seed, case in enumerate(cases):
        random = np.random.default_rng(seed)
        predicted = written[case] = WrittenCase(
            model=random.integers(0, 3, shape).astype(np.uint8),
            route=scattered_route(random, shape) if deferred else np.zeros(shape, np.uint8),
            probability=random.random(shape, dtype=np.float32),
            expert=random.integers(1, 3, shape).astype(np.uint8),
            gain=random.random(shape, dtype=np.float32) / 100,
        )
        deferral.write(case, predicted.maps, small_prediction.GEOMETRY)
        write_mask(folder / f"{case}{ending}", predicted.model)
        write_image(root / "images" / f"{case}_0000{ending}", shape)
    return written


def write_image(file, shape):
    values = np.random.default_rng(1).integers(0, 255, shape).astype(np.uint8)
    if file.suffix in (".png", ".bmp"):
        imsave(file, values[0], check_contrast=False)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(values.astype(np.float32)), str(file))


def make(root, *, images="images", output="out", **how):
    return write_worklist(root / "in", root / output, images=images and root / images, **how)


def state_of(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def read_csv(file):
    with file.open(newline="", encoding="utf-8") as opened:
        return list(csv.DictReader(opened))


class TestList:
    def test_the_gains_of_all_regions_are_those_of_the_gain_map(self, tmp_path, ending):
        write_input(tmp_path, ending)
        content = make(tmp_path, images=None)
        opened, total = PredictionFolder.open(tmp_path / "in"), 0.0
        for case in opened.cases:
            gain, route = opened.case(case).gain.astype(float), opened.case(case).route
            rows = [row for row in content["regions"] if row["case"] == case]
            assert len(rows) == region_labels(route).max() > 2
            assert sum(row["expected_gain"] for row in rows) == pytest.approx(gain[route > 0].sum())
            assert sum(row["voxels"] for row in rows) == (route > 0).sum()
            for row in rows:
                number = region_labels(route)[tuple(row["centre"])]
                assert row["expected_gain"] == pytest.approx(gain[region_labels(route) == number].sum())
                assert opened.experts[route[tuple(row["centre"])] - 1] == row["expert"]
            total += gain[route > 0].sum()
        assert content["totals"]["deferred"]["expected_gain"] == pytest.approx(total)
        assert content["totals"]["listed"] == content["totals"]["deferred"]

    def test_the_best_use_of_time_comes_first(self, tmp_path, ending):
        write_input(tmp_path, ending)
        rows = make(tmp_path, images=None, time=WorkTime(minutes_per_region=0.1, minutes_per_cm=2))["regions"]
        rates = [row["gain_per_minute"] for row in rows]
        assert rates == sorted(rates, reverse=True)
        assert [row["rank"] for row in rows] == list(range(1, len(rows) + 1))
        assert rows[-1]["cumulative_minutes"] == pytest.approx(sum(row["minutes"] for row in rows), abs=1e-3)
        assert {row["border_mm"] is None for row in rows} == {ending == ".png"}

    def test_csv_and_json_hold_the_same(self, tmp_path, ending):
        write_input(tmp_path, ending)
        content = make(tmp_path, images=None)
        stored = json.loads((tmp_path / "out" / "worklist.json").read_text())
        assert stored == content
        assert stored["unit"] == ("mm" if ending == ".nii.gz" else "pixels")
        rows = read_csv(tmp_path / "out" / "worklist.csv")
        assert list(rows[0]) == columns(stored["unit"])
        assert len(rows) == len(stored["regions"])
        for flat, row in zip(rows, stored["regions"], strict=True):
            for key in ("rank", "expected_gain", "minutes", "gain_per_minute", "cumulative_minutes", "voxels", "label"):
                assert float(flat[key]) == row[key]
            for key in ("case", "expert", "why", "mask"):
                assert flat[key] == row[key]
            box = [[int(flat[f"box_{axis}_{end}"]) for end in ("start", "stop")] for axis in "zyx"]
            world = [[float(flat[f"box_world_{axis}_{end}"]) for end in ("low", "high")] for axis in "xyz"]
            assert (box, world) == (row["box"], row["box_world"])
            assert [int(flat[f"centre_{axis}"]) for axis in "zyx"] == row["centre"]
            assert [float(flat[f"centre_world_{axis}"]) for axis in "xyz"] == row["centre_world"]
            sizes = [flat[f"size_{stored['unit']}_{axis}"] for axis in "zyx"]
            assert [float(size) if size else None for size in sizes] == row[f"size_{stored['unit']}"]

    def test_the_world_is_that_of_the_mask_file(self, tmp_path):
        write_input(tmp_path)
        for row in make(tmp_path, images=None)["regions"]:
            mask = sitk.ReadImage(str(tmp_path / "in" / f"{row['case']}.nii.gz"))
            assert row["centre_world"] == pytest.approx(
                mask.TransformIndexToPhysicalPoint(row["centre"][::-1]), abs=1e-3
            )

    def test_in_a_picture_it_is_counted_in_pixels(self, tmp_path):
        write_input(tmp_path, ".png")
        for row in make(tmp_path, images=None)["regions"]:
            assert row["centre_world"] == row["centre"][::-1]
            assert row["size_pixels"] == [None, *(stop - start for start, stop in row["box"][1:])]

    def test_totals_tell_what_was_left_out_and_whose_it_is(self, tmp_path):
        write_input(tmp_path)
        everything = make(tmp_path, images=None)["regions"]
        content = make(tmp_path, images=None, output="few", max_regions=3)
        listed, of = content["totals"]["listed"], content["totals"]["experts"]
        assert content["regions"] == everything[:3]
        assert listed["regions"] == 3 < content["totals"]["deferred"]["regions"] == len(everything)
        assert listed["minutes"] == pytest.approx(sum(row["minutes"] for row in everything[:3]), abs=1e-3)
        for key in ("listed", "deferred"):
            for count in ("regions", "voxels", "minutes", "expected_gain"):
                parts = sum(of[expert][key][count] for expert in ("ann", "bob"))
                assert parts == pytest.approx(content["totals"][key][count])

    def test_the_list_ends_where_the_minutes_do(self, tmp_path):
        write_input(tmp_path)
        content = make(tmp_path, images=None, max_minutes=2)
        assert 1 < content["totals"]["listed"]["minutes"] <= 2
        assert content["regions"][-1]["cumulative_minutes"] <= 2
        assert content["arguments"]["max_minutes"] == 2

    def test_listed_cases_with_another_mask_than_the_predicted_one_are_cautioned_about(self, tmp_path, capsys):
        written = write_input(tmp_path)
        for case in written:
            deferral_folder(tmp_path / "in", ".nii.gz", EXPERTS).note_mask(case, with_probabilities=False)
        write_mask(tmp_path / "in" / "y.nii.gz", np.roll(written["y"].model, 1))
        main(["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--no_pictures"])
        assert "CAUTION: 1 case has a mask other than the one predicted with the maps (y)" in capsys.readouterr().out
        assert json.loads((tmp_path / "out" / "worklist.json").read_text())["other_masks"] == ["y"]

    def test_none_at_all_may_be_listed(self, tmp_path, ending):
        write_input(tmp_path, ending)
        content = make(tmp_path, max_regions=0)
        assert content["regions"] == []
        assert content["totals"]["deferred"]["regions"] > 0
        assert sorted(map(str, state_of(tmp_path / "out"))) == ["worklist.csv", "worklist.json"]

    def test_reasons_are_made_of_the_names_of_the_dataset(self, tmp_path):
        write_input(tmp_path)
        reasons = [row["why"] for row in make(tmp_path, images=None)["regions"]]
        assert all(any(name in why for name in small_prediction.LABELS) for why in reasons)
        assert all("mean deferral probability: 0." in why for why in reasons)


class TestParts:
    """Regions found by jobs of their own are listed together as by one call."""

    @pytest.mark.parametrize("limits", [{"max_regions": 7}, {"max_minutes": 9.5}, {}])
    def test_the_list_is_the_same(self, tmp_path, limits):
        write_input(tmp_path, ".png", cases=("x", "y", "z"))
        words = [word for key, value in limits.items() for word in (f"-{key}", str(value))]
        make(tmp_path, images=None, **limits)
        wanted = state_of(tmp_path / "out")
        shutil.rmtree(tmp_path / "out")
        call = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--no_pictures"]
        for part in (1, 0, 3, 2):
            main([*call, "-num_parts", "4", "-part_id", str(part)])
        main([*call, *words, "--merge"])
        assert {name: content for name, content in state_of(tmp_path / "out").items() if name.parts[0] != "parts"} == (
            wanted
        )

    def test_parts_from_before_the_cases_were_decided_anew_are_refused(self, tmp_path, capsys):
        write_input(tmp_path, ".png")
        call = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--no_pictures"]
        for part in (0, 1):
            main([*call, "-num_parts", "2", "-part_id", str(part)])
        entry = maps.case_file(tmp_path / "in", "x")
        entry.write_text(entry.read_text().replace('"largest_gain": 0.00', '"largest_gain": 0.01'))
        with pytest.raises(SystemExit):
            main([*call, "--merge"])
        assert "part_0_of_2.pkl.gz was made with different arguments (cases is" in capsys.readouterr().err

    @pytest.mark.distributed
    def test_processes_write_what_one_does(self, tmp_path, full_resolution):
        write_input(tmp_path, ".png")
        make(tmp_path, max_regions=3)
        make(tmp_path, max_regions=3, output="other", num_processes=2)
        assert state_of(tmp_path / "other") == state_of(tmp_path / "out")


class TestMasks:
    def test_values_are_the_labels_of_the_list(self, tmp_path, ending):
        written = write_input(tmp_path, ending)
        rows = make(tmp_path, images=None, max_regions=7)["regions"]
        for name in {row["mask"] for row in rows}:
            mask, ours = read_mask(tmp_path / "out" / name), [row for row in rows if row["mask"] == name]
            labels = region_labels(written[ours[0]["case"]].route)
            assert [row["label"] for row in ours] == list(range(1, len(ours) + 1))
            assert set(np.unique(mask)) - {0} == {row["label"] for row in ours}
            for row in ours:
                assert name == f"masks/{row['expert']}/{row['case']}{ending}"
                assert np.array_equal(mask == row["label"], labels == labels[tuple(row["centre"])])
        assert {str(file) for file in state_of(tmp_path / "out") if file.parts[0] == "masks"} == {
            row["mask"] for row in rows
        }

    def test_they_lie_where_the_predictions_lie(self, tmp_path):
        write_input(tmp_path)
        for row in make(tmp_path, images=None)["regions"]:
            files = (tmp_path / "in" / f"{row['case']}.nii.gz", tmp_path / "out" / row["mask"])
            model, mask = (sitk.ReadImage(str(file)) for file in files)
            for what in ("Size", "Spacing", "Origin", "Direction", "PixelID"):
                assert getattr(mask, f"Get{what}")() == getattr(model, f"Get{what}")()
            assert mask.GetDirection() == pytest.approx(OBLIQUE.ravel(), abs=1e-6)

    @pytest.fixture
    def dust(self, tmp_path):
        """A case with 400 regions, more than a byte can number."""

        def write(ending):
            write_input(tmp_path, ending, cases=("x",))
            route = np.zeros((1, 120, 120), np.uint8)
            route[:, ::6, ::6] = 1
            write_mask(tmp_path / "in" / f"x{ending}", route)
            for path in maps.MAP_FILES.values():
                values = np.maximum(route, 1) if path is maps.expert_file else route
                write_mask(path(tmp_path / "in", "x", ending), values)

        return write

    def test_more_regions_than_a_byte_can_number_are_numbered(self, tmp_path, ending, dust):
        dust(ending)
        content = make(tmp_path, images=None)
        mask = read_mask(tmp_path / "out" / "masks" / "ann" / f"x{ending}")
        assert len(content["regions"]) == mask.max() == 400
        for row in content["regions"]:
            assert mask[tuple(row["centre"])] == row["label"]

    def test_a_format_that_cannot_is_refused_with_the_way_out(self, tmp_path, dust):
        dust(".bmp")
        with pytest.raises(
            ValueError, match=r"cannot represent the 400 regions of ann/x.bmp; list fewer \(-max_regions\)"
        ):
            make(tmp_path, images=None)
        assert state_of(tmp_path / "out") == {}
        content = make(tmp_path, images=None, max_regions=254)
        assert read_mask(tmp_path / "out" / content["regions"][-1]["mask"]).max() == 254

    def test_so_is_one_whose_writer_would_silently_start_again_from_0(self, tmp_path, dust, monkeypatch):
        dust(".png")
        stock = NaturalImage2DIO.write_seg
        monkeypatch.setattr(
            NaturalImage2DIO, "write_seg", lambda self, seg, *how: stock(self, seg.astype(np.uint8), *how)
        )
        with pytest.raises(ValueError, match="cannot represent the 400 regions of ann/x.png"):
            make(tmp_path, images=None)
        assert state_of(tmp_path / "out") == {}


class TestPictures:
    def test_every_region_has_one_that_shows_something(self, tmp_path, ending, full_resolution):
        write_input(tmp_path, ending)
        content = make(tmp_path, max_regions=3)
        pictures = sorted(file.name for file in (tmp_path / "out" / "pictures").iterdir())
        assert pictures == [f"{row['rank']:04d}_{row['case']}_{row['expert']}.png" for row in content["regions"]]
        for row in content["regions"]:
            pixels = imread(tmp_path / "out" / row["picture"])
            assert pixels.shape[1] > 800
            halves = np.array_split(pixels[100:-150, :, :3], 2, axis=1)
            assert all(half.std() > 0.05 for half in halves)

    def test_without_pictures_no_images_are_needed(self, tmp_path):
        write_input(tmp_path)
        content = make(tmp_path, images=None)
        assert not (tmp_path / "out" / "pictures").exists()
        assert {row["picture"] for row in content["regions"]} == {None}
        assert {flat["picture"] for flat in read_csv(tmp_path / "out" / "worklist.csv")} == {""}


class TestRefusals:
    """Nothing appears and nothing changes when something is wrong."""

    def refused(self, root, message, **how):
        before = state_of(root)
        with pytest.raises(ValueError, match=message):
            make(root, **how)
        assert state_of(root) == before
        assert not list(root.rglob(".unfinished*"))

    def test_all_cases_without_an_image_are_named(self, tmp_path):
        write_input(tmp_path)
        for file in (tmp_path / "images").iterdir():
            file.unlink()
        self.refused(tmp_path, r"cases without an image <case>_0000.nii.gz in .*images \(2\): x, y")
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (
                lambda file: write_image(file, (6, 60, 71)),
                r"y_0000.nii.gz has shape \(6, 60, 71\), but the mask of the case has \(6, 60, 70\)",
            ),
            (lambda file: file.write_bytes(b"no image"), r"y_0000.nii.gz cannot be read"),
        ],
    )
    def test_an_image_that_does_not_fit_leaves_nothing_behind(self, tmp_path, damage, message):
        write_input(tmp_path)
        damage(tmp_path / "images" / "y_0000.nii.gz")
        self.refused(tmp_path, message, max_regions=5)

    def test_a_map_of_another_shape(self, tmp_path):
        write_input(tmp_path)
        write_mask(maps.gain_file(tmp_path / "in", "y", ".nii.gz"), np.zeros((6, 60, 71), np.uint8))
        message = r"deferral/gain/y.nii.gz has shape \(6, 60, 71\) instead of \(6, 60, 70\)"
        self.refused(tmp_path, message, images=None)

    @pytest.mark.parametrize("name", ["worklist.csv", "worklist.json", "masks", "pictures"])
    def test_a_folder_that_holds_a_worklist_already(self, tmp_path, name):
        write_input(tmp_path)
        (tmp_path / "out" / name).mkdir(parents=True)
        self.refused(tmp_path, rf"out already has {name}; choose another folder \(-o\) or .*--overwrite")

    def test_told_to_replace_it_only_its_own_files_go(self, tmp_path, ending):
        write_input(tmp_path, ending)
        first = make(tmp_path, max_regions=2)
        notes = tmp_path / "out" / "masks" / "notes.txt"
        notes.write_text("mine")
        second = make(tmp_path, max_regions=1, overwrite=True)
        assert len(first["files"]) > len(second["files"])
        files = {str(file) for file in state_of(tmp_path / "out")}
        assert files == {"worklist.csv", "worklist.json", "masks/notes.txt", *second["files"]}
        assert set(second["files"]) == {row[key] for row in second["regions"] for key in ("mask", "picture")}
        assert notes.read_text() == "mine"

    def test_files_that_are_of_no_worklist_are_not_replaced(self, tmp_path):
        write_input(tmp_path)
        for expert in ("ann", "bob"):
            write_mask(tmp_path / "out" / "masks" / expert / "x.nii.gz", np.zeros((6, 60, 70), np.uint8))
        self.refused(tmp_path, "out has files that do not belong to a worklist: masks/", images=None, overwrite=True)

    @pytest.mark.parametrize(
        ("content", "fault"),
        [
            ("{", "cannot be read"),
            ("{}", "is not a valid worklist and is not replaced"),
            ('{"files": [3]}', "is not a valid worklist and is not replaced: files.0. must be a string, got 3"),
            ('{"files": "masks/x.nii.gz"}', "is not a valid worklist and is not replaced: files must be a list"),
        ],
    )
    def test_nor_is_a_json_of_something_else(self, tmp_path, content, fault):
        write_input(tmp_path)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "worklist.json").write_text(content)
        self.refused(tmp_path, f"worklist.json {fault}", images=None, overwrite=True)

    def test_a_file_outside_is_never_removed_whatever_a_worklist_names(self, tmp_path):
        write_input(tmp_path)
        make(tmp_path, images=None)
        listing = tmp_path / "out" / "worklist.json"
        content = json.loads(listing.read_text())
        outside = tmp_path / "in" / "x.nii.gz"
        content["files"] += ["../in/x.nii.gz", "masks/../../in/x.nii.gz", str(outside)]
        listing.write_text(json.dumps(content))
        make(tmp_path, images=None, overwrite=True)
        assert outside.is_file()

    @pytest.mark.parametrize("name", ["", "masks", "/", "pictures"])
    def test_a_worklist_that_names_no_files_removes_nothing(self, tmp_path, name):
        write_input(tmp_path)
        make(tmp_path, images=None)
        listing = tmp_path / "out" / "worklist.json"
        content = json.loads(listing.read_text()) | {"files": [name]}
        listing.write_text(json.dumps(content))
        self.refused(tmp_path, "out has files that do not belong to a worklist", images=None, overwrite=True)

    def test_a_failure_on_the_way_leaves_the_old_list_as_it_was(self, tmp_path):
        write_input(tmp_path)
        make(tmp_path, images=None)
        (tmp_path / "images" / "y_0000.nii.gz").write_bytes(b"no image")
        self.refused(tmp_path, "cannot be read", overwrite=True, max_regions=5)


class KilledError(BaseException):
    """Ends a process where no handler of exceptions does anything about it."""


class TestKilled:
    """A process that is killed while it publishes a list leaves nothing that cannot be replaced."""

    def kill_at(self, monkeypatch, step, action):
        """Let `step` files be moved or deleted, and no more; gives whether the process came that far."""
        done = []

        def counted(genuine):
            def act(*how, **options):
                if len(done) == step:
                    raise KilledError
                done.append(how)
                return genuine(*how, **options)

            return act

        with monkeypatch.context() as patch:
            for name in ("replace", "unlink"):
                patch.setattr(Path, name, counted(getattr(Path, name)))
            try:
                action()
            except KilledError:
                return True
        return False

    @pytest.mark.parametrize("replaces", [False, pytest.param(True, marks=pytest.mark.slow)])
    def test_at_any_step_it_can_be_replaced_and_other_files_stay(self, tmp_path, monkeypatch, replaces):
        write_input(tmp_path, ".png")
        out, wanted = tmp_path / "out", make(tmp_path, images=None, max_regions=4)
        complete = set(state_of(out))
        step = 0
        while True:
            shutil.rmtree(out)
            if replaces:
                make(tmp_path, images=None)
            (out / "masks").mkdir(parents=True, exist_ok=True)
            (out / "masks" / "notes.txt").write_text("mine")
            if not self.kill_at(monkeypatch, step, lambda: make(tmp_path, images=None, max_regions=4, overwrite=True)):
                break
            listing = out / "worklist.json"
            if listing.is_file():  # the old list or the new one, with all its files
                assert all((out / name).is_file() for name in json.loads(listing.read_text())["files"])
            assert make(tmp_path, images=None, max_regions=4, overwrite=True)["files"] == wanted["files"]
            assert set(state_of(out)) == {*complete, Path("masks/notes.txt")}
            step += 1
        assert step > len(wanted["files"]) + 3

    @pytest.mark.slow
    def test_at_any_step_the_same_call_completes_it(self, tmp_path, monkeypatch):
        write_input(tmp_path, ".png")
        out, wanted = tmp_path / "out", make(tmp_path, images=None)
        complete = set(state_of(out))
        for step in range(1000):
            shutil.rmtree(out)
            if not self.kill_at(monkeypatch, step, lambda: make(tmp_path, images=None)):
                break
            if (out / "worklist.json").is_file():  # only the record of what was unfinished is left over
                with pytest.raises(ValueError, match="already has worklist.json"):
                    make(tmp_path, images=None)
                continue
            assert make(tmp_path, images=None)["files"] == wanted["files"]
            assert set(state_of(out)) == complete
        assert step > len(wanted["files"]) + 3

    def test_a_damaged_record_of_what_was_unfinished_is_named(self, tmp_path):
        write_input(tmp_path)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / ".unfinished_files.json").write_text('{"files": [7]}')
        with pytest.raises(ValueError, match=r"\.unfinished_files\.json must list names"):
            make(tmp_path, images=None)

    def test_parts_with_minutes_by_the_longest_side_must_be_made_again(self, tmp_path, capsys):
        write_input(tmp_path)
        call = ["-i", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--no_pictures"]
        folder = PredictionFolder.open(tmp_path / "in")
        before = same_for_all_parts(folder, WorkTime())
        Part().write(np.zeros(0, ROW), tmp_path / "out", before | {"time": asdict(WorkTime())})
        with pytest.raises(SystemExit):
            main([*call, "--merge"])
        assert "was made with different arguments" in capsys.readouterr().err


class TestCommand:
    def run(self, root, *arguments, images=True):
        given = ["-i", root / "in", "-o", root / "out", *(["-images", root / "images"] if images else []), *arguments]
        main(list(map(str, given)))

    def test_it_shows_the_first_rows_the_totals_and_where_everything_is(self, tmp_path, capsys):
        write_input(tmp_path)
        djfile = (tmp_path / "in" / "dataset.json").rename(tmp_path / "elsewhere.json")
        self.run(tmp_path, "-djfile", djfile, "--no_pictures", "-minutes_per_region", "1.5", "-minutes_per_cm", "0")
        content = json.loads((tmp_path / "out" / "worklist.json").read_text())
        number = len(content["regions"])
        assert number > 10
        assert {row["minutes"] for row in content["regions"]} == {1.5}
        said = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in said[1:12]] == [*map(str, range(1, 11)), "..."]
        assert f"{number} of {number} regions in {1.5 * number:.1f} of {1.5 * number:.1f} minutes" in said[12]
        assert said[13].startswith("  ann: ")
        assert [line.strip() for line in said[15:]] == [
            str(tmp_path / "out" / name) for name in ("worklist.csv", "worklist.json", "masks")
        ]

    @pytest.mark.parametrize(("objective", "unit"), [("one_vs_all", "Dice"), ("collaboration", "score")])
    def test_gains_are_in_dice_only_where_probabilities_are_of_being_right(self, tmp_path, capsys, objective, unit):
        write_input(tmp_path)
        index = maps.index_file(tmp_path / "in")
        content = json.loads(index.read_text())
        content["settings"]["objective"] = objective
        index.write_text(json.dumps(content))
        self.run(tmp_path, "--no_pictures")
        head = next(line for line in capsys.readouterr().out.splitlines() if "rank" in line)
        assert unit in head.split()
        assert json.loads((tmp_path / "out" / "worklist.json").read_text())["gain_unit"] == unit

    def test_where_nothing_is_deferred_the_list_is_empty_and_that_is_said(self, tmp_path, ending, capsys):
        write_input(tmp_path, ending, deferred=False)
        self.run(tmp_path)
        assert "nothing is deferred in 2 cases; the worklist is empty" in capsys.readouterr().out
        lines = (tmp_path / "out" / "worklist.csv").read_text().splitlines()
        assert [line.split(",") for line in lines] == [columns("mm" if ending == ".nii.gz" else "pixels")]
        content = json.loads((tmp_path / "out" / "worklist.json").read_text())
        assert content["regions"] == []
        assert set(content["totals"]["deferred"].values()) == {0}

    def test_limits_come_from_the_command_line(self, tmp_path, capsys):
        write_input(tmp_path)
        self.run(tmp_path, "-max_regions", "2", "-max_minutes", "9")
        assert len(list((tmp_path / "out" / "pictures").iterdir())) == 2
        with pytest.raises(SystemExit) as ended:
            self.run(tmp_path)
        assert ended.value.code == 2
        assert "--overwrite" in capsys.readouterr().err.splitlines()[-1]
        self.run(tmp_path, "-max_regions", "0", "--overwrite")
        assert len(read_csv(tmp_path / "out" / "worklist.csv")) == 0

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["-max_regions", "-1"], "max_regions must be at least 0, got -1"),
            (["-max_regions", "two"], "-max_regions: invalid int value"),
            (["-max_minutes", "nan"], "max_minutes must be finite and at least 0, got nan"),
            (["-max_minutes", "inf"], "max_minutes must be finite"),
            (["-minutes_per_region", "0"], "minutes_per_region must be positive and finite, got 0.0"),
            (["-minutes_per_cm", "-2"], "minutes_per_cm must be finite and at least 0, got -2.0"),
            (["-i", "nowhere"], "the folder nowhere does not exist"),
        ],
    )
    def test_bad_input_ends_with_one_line_and_no_traceback(self, tmp_path, capsys, arguments, message):
        write_input(tmp_path)
        with pytest.raises(SystemExit) as ended:
            self.run(tmp_path, *arguments)
        assert ended.value.code == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert not (tmp_path / "out").exists()

    def test_pictures_without_images_cannot_be(self, tmp_path, capsys):
        write_input(tmp_path)
        with pytest.raises(SystemExit) as ended:
            self.run(tmp_path, images=False)
        assert ended.value.code == 2
        assert "specify their folder (-images) or use --no_pictures" in capsys.readouterr().err
        self.run(tmp_path, "--no_pictures", images=False)


class TestViewers:
    def test_points_have_the_rank_and_lie_in_their_regions(self, tmp_path):
        write_input(tmp_path)
        rows = make(tmp_path, viewers=tmp_path / "images", images=None, max_regions=6)["regions"]
        for expert, case in {(row["expert"], row["case"]) for row in rows}:
            mask = sitk.ReadImage(str(tmp_path / "out" / "masks" / expert / f"{case}.nii.gz"))
            content = json.loads((tmp_path / "out" / "viewers" / "slicer" / expert / f"{case}.mrk.json").read_text())
            (markup,) = content["markups"]
            assert (markup["type"], markup["coordinateSystem"]) == ("Fiducial", "LPS")
            mine = [row for row in rows if (row["expert"], row["case"]) == (expert, case)]
            assert [point["label"] for point in markup["controlPoints"]] == [str(row["rank"]) for row in mine]
            for point, row in zip(markup["controlPoints"], mine, strict=True):
                assert mask[mask.TransformPhysicalPointToIndex(point["position"])] == row["label"]

    def test_tasks_are_in_the_order_of_the_list(self, tmp_path):
        write_input(tmp_path)
        content = make(tmp_path, viewers=tmp_path / "images", images=None, max_regions=6)
        tasks = json.loads((tmp_path / "out" / "viewers" / "mitk_tasks.json").read_text())
        expected = list(dict.fromkeys((row["expert"], row["case"]) for row in content["regions"]))
        assert [task["Result"] for task in tasks["Tasks"]] == [f"results/{ex}/{case}.nrrd" for ex, case in expected]
        assert all(Path(task["Image"]).is_file() for task in tasks["Tasks"])
        labels = tmp_path / "out" / "viewers" / tasks["Defaults"]["LabelNameSuggestions"]
        assert json.loads(labels.read_text()) == [{"name": "rim"}, {"name": "core"}]
        make(tmp_path, images=None, max_regions=6, overwrite=True)
        assert not [file for file in state_of(tmp_path / "out") if file.parts[0] == "viewers"]

    def test_pictures_without_a_size_and_missing_images_are_refused(self, tmp_path, capsys):
        write_input(tmp_path / "png", ".png")
        with pytest.raises(InputError, match="viewers require images with sizes in mm, which .png does not have"):
            make(tmp_path / "png", viewers=tmp_path / "png" / "images")
        with pytest.raises(SystemExit):
            main(["-i", str(tmp_path / "png" / "in"), "-o", str(tmp_path / "out"), "--no_pictures", "--viewers"])
        assert "--viewers requires the images" in capsys.readouterr().err

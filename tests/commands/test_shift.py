"""`nnUNetv2_deferral_shift`: a folder that nnU-Net predicts on and the evaluation compares by domain."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
from skimage import io

from nnunetv2_deferral.commands.shift import main, shift_images
from nnunetv2_deferral.image_shifts import shift_image

LABELS = {"background": 0, "lesion": 1}


def make_dataset(root, ending, *, channels=1, cases=("a", "b_1")):
    """Images, labels and masks of an expert who has the first case only."""
    generator = np.random.default_rng(0)
    for case in cases:
        shape = (20, 24) if ending == ".png" else (6, 20, 24)
        for channel in range(channels):
            image = generator.integers(20, 200, shape)
            save(
                image.astype(np.int16 if ending != ".png" else np.uint8),
                root / "imagesTs" / f"{case}_{channel:04d}{ending}",
            )
        save(generator.integers(0, 2, shape).astype(np.uint8), root / "labelsTs" / f"{case}{ending}")
    save(generator.integers(0, 2, shape).astype(np.uint8), root / "expertsTs" / "ann" / f"{cases[0]}{ending}")
    (root / "expertsTs" / "simulation.json").write_text("{}")
    names = {str(channel): "MR" for channel in range(channels)}
    content = {"channel_names": names, "labels": LABELS, "numTraining": 1, "file_ending": ending}
    (root / "dataset.json").write_text(json.dumps(content))
    return root


def save(array, file):
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.name.endswith(".png"):
        io.imsave(file, array, check_contrast=False)
        return
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.8, 0.9, 3.0))
    image.SetOrigin((-7.0, 3.5, 11.0))
    image.SetDirection((0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0))
    sitk.WriteImage(image, str(file))


def refused(capsys, *words):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(("ending", "channels"), [(".nii.gz", 2), (".png", 1)])
def test_every_case_is_there_once_and_once_a_shift(tmp_path, capsys, ending, channels):
    root, out = make_dataset(tmp_path / "data", ending, channels=channels), tmp_path / "out"
    main(
        [str(word) for word in ("-i", root / "imagesTs", "-ref", root / "labelsTs", "-experts", root / "expertsTs",
                                "-o", out, "-kinds", "noise", "gamma", "-levels", 1, 3)]
    )  # fmt: skip
    suffixes = {"": "ID", "_noise1": "noise 1", "_noise3": "noise 3", "_gamma1": "gamma 1", "_gamma3": "gamma 3"}
    expected = {f"{case}{suffix}": domain for case in ("a", "b_1") for suffix, domain in suffixes.items()}
    assert json.loads((out / "domains.json").read_text()) == expected
    groups = json.loads((out / "groups.json").read_text())
    assert groups.keys() == expected.keys()
    assert all(name.startswith(case) for name, case in groups.items()) and set(groups.values()) == {"a", "b_1"}
    images = {f"{name}_{channel:04d}{ending}" for name in expected for channel in range(channels)}
    assert {file.name for file in (out / "images").iterdir()} == images
    for name, case in groups.items():
        for folder, source in (("labels", "labelsTs"), ("experts/ann", "expertsTs/ann")):
            copy, original = out / folder / f"{name}{ending}", root / source / f"{case}{ending}"
            assert copy.is_file() == original.is_file()
            assert not original.is_file() or copy.read_bytes() == original.read_bytes()
    assert (out / "experts" / "simulation.json").is_file()
    original = sitk.ReadImage(str(root / "imagesTs" / f"a_0000{ending}"))
    shifted = sitk.ReadImage(str(out / "images" / f"a_noise3_0000{ending}"))
    assert shifted.GetPixelID() == original.GetPixelID()
    assert (shifted.GetSpacing(), shifted.GetOrigin()) == (original.GetSpacing(), original.GetOrigin())
    assert shifted.GetDirection() == original.GetDirection()
    assert not np.array_equal(sitk.GetArrayFromImage(shifted), sitk.GetArrayFromImage(original))
    assert f"-domains {out / 'domains.json'}" in capsys.readouterr().out


def test_a_colour_picture_is_shifted_by_channel(tmp_path):
    root = make_dataset(tmp_path / "data", ".png")
    colours = np.random.default_rng(1).integers(60, 180, (20, 24, 3)).astype(np.uint8)
    for case in ("a", "b_1"):
        save(colours, root / "imagesTs" / f"{case}_0000.png")
    shift_images(root / "imagesTs", tmp_path / "out", kinds=["blur"], levels=[1])
    found = io.imread(tmp_path / "out" / "images" / "a_blur1_0000.png")
    image = np.moveaxis(colours, -1, 0).astype(np.float32)
    expected = shift_image(image, "blur", 1, spacing=(1.0, 1.0), generator=np.random.default_rng(0))
    assert np.array_equal(found, np.moveaxis(np.rint(expected), 0, -1))


def test_a_shift_depends_on_seed_case_kind_and_level_alone(tmp_path):
    root = make_dataset(tmp_path / "data", ".png")
    for name, how in (("one", {"kinds": ["noise"]}), ("two", {"kinds": ["gamma", "noise"]}), ("other", {"seed": 1})):
        shift_images(root / "imagesTs", tmp_path / name, levels=[2], **how)
    one, two, other = (io.imread(tmp_path / name / "images" / "a_noise2_0000.png") for name in ("one", "two", "other"))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_what_cannot_be_shifted_is_refused_and_nothing_is_written(tmp_path, capsys):
    root, out = make_dataset(tmp_path / "data", ".png"), tmp_path / "out"
    images = root / "imagesTs"
    cases = [
        (("-kinds", "rain"), "unknown shifts rain; known are bias_field"),
        (("-levels", 1, 4), "levels must be among 1, 2, 3, got 4"),
        (("-np", 0), "at least 1, got 0"),
        (("-ref", root / "expertsTs" / "ann"), "cases without a reference in"),
        (("-experts", root / "labelsTs"), "has no folders of experts' masks"),
        (("-djfile", root / "none.json"), "none.json; specify the dataset.json of the images with -djfile"),
    ]
    for words, said in cases:
        assert said in refused(capsys, "-i", images, "-o", out, *words)
    assert "nowhere does not exist" in refused(capsys, "-i", root / "nowhere", "-o", out)
    assert "labelsTs has no images" in refused(capsys, "-i", root / "labelsTs", "-o", out)
    assert "is not empty" in refused(capsys, "-i", images, "-o", root)
    save(np.zeros((20, 24), np.uint8), images / "a_noise1_0000.png")
    assert "cases with the names of shifted ones" in refused(capsys, "-i", images, "-o", out)
    (images / "a_noise1_0000.png").unlink()
    cut = images / "b_1_0000.png"
    cut.write_bytes(cut.read_bytes()[:-30])
    assert "b_1_0000.png" in refused(capsys, "-i", images, "-o", out)
    assert not out.exists() or not list(out.iterdir())
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(content | {"file_ending": ".tif"}))
    io.imsave(images / "a_0000.tif", np.zeros((4, 20, 24), np.uint8), check_contrast=False)
    assert "images with the ending .tif cannot be shifted" in refused(capsys, "-i", images, "-o", out)

import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from skimage import io

from nnunetv2_deferral import image_files
from nnunetv2_deferral.commands.convert_dataset import convert_dataset
from nnunetv2_deferral.dataset_conversion.chaksu import consensus
from nnunetv2_deferral.dataset_conversion.staple import staple
from nnunetv2_deferral.errors import InputError

PHOTOGRAPHS, MASKS = "1.0_Original_Fundus_Images", "3.0_Doctors_Annotations_Binary_OD_OC"
SHAPES = {"Bosch": (40, 52), "Forus": (44, 56), "Remidio": (60, 48)}


def circle(shape, radius, center=(20, 24)):
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - center[0]) ** 2 + (columns - center[1]) ** 2 <= radius**2


def save(path, picture):
    path.parent.mkdir(parents=True, exist_ok=True)
    io.imsave(str(path), picture, check_contrast=False)


def save_mask(path, mask):
    save(path, mask.astype(np.uint8) * 255)


def mask_file(root, expert, device, structure, name):
    return root / MASKS / f"Expert {expert}" / device / structure / f"{name}.tif"


def save_case(root, device, file_name):
    """A photograph and five doctors' masks: discs of radius 10 to 14, cups of radius 4 to 8."""
    shape = SHAPES[device]
    generator = np.random.default_rng(len(file_name))
    save(root / PHOTOGRAPHS / device / file_name, generator.integers(0, 255, (*shape, 3)).astype(np.uint8))
    for expert in range(1, 6):
        for structure, radius in (("Disc", 9 + expert), ("Cup", 3 + expert)):
            path = mask_file(root, expert, device, structure, file_name.rpartition(".")[0])
            save_mask(path, circle(shape, radius))


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "chaksu"
    for half, device, name in (
        ("Train", "Bosch", "Image101.JPG"),
        ("Train", "Bosch", "P11_image_1.jpg"),
        ("Train", "Forus", "22.png"),
        ("Train", "Remidio", "IMG_2431.JPG"),
        ("Test", "Remidio", "IMG_0007.JPG"),
    ):
        save_case(folder / half, device, name)
    (folder / "Readme_Chaksu IMAGE Database.pdf").write_text("readme")
    (folder / "Train" / PHOTOGRAPHS / "Bosch" / "Thumbs.db").write_text("junk")
    (folder / "Train" / MASKS / "Expert 1" / "Bosch" / "Disc" / ".DS_Store").write_text("junk")
    return folder


@pytest.fixture
def train(published):
    return published / "Train"


def convert(published, **options):
    return convert_dataset("chaksu", published, 600, published.parent / "raw", **options)


def read(folder, *parts):
    return io.imread(str(folder.joinpath(*parts)))


def test_every_photograph_has_a_reference_and_five_experts(published, files_below):
    folder = convert(published)
    assert folder.name == "Dataset600_Chaksu"
    expected = ["dataset.json"]
    training = ["Bosch_Image101", "Bosch_P11_image_1", "Forus_22", "Remidio_IMG_2431"]
    for split, cases in (("Tr", training), ("Ts", ["Remidio_IMG_0007"])):
        for case in cases:
            expected += [f"images{split}/{case}_0000.png", f"labels{split}/{case}.png"]
            expected += [f"experts{split}/expert{expert}/{case}.png" for expert in range(1, 6)]
    assert files_below(folder) == sorted(expected)


def test_the_photographs_pixels_are_kept(published, train):
    folder = convert(published)
    for case, source in (("Bosch_Image101", "Bosch/Image101.JPG"), ("Forus_22", "Forus/22.png")):
        assert np.array_equal(read(folder, "imagesTr", f"{case}_0000.png"), read(train, PHOTOGRAPHS, source))


def test_the_experts_labels_are_rim_and_cup_as_they_drew_them(published):
    folder = convert(published)
    for expert in range(1, 6):
        disc, cup = circle(SHAPES["Forus"], 9 + expert), circle(SHAPES["Forus"], 3 + expert)
        label = read(folder, "expertsTr", f"expert{expert}", "Forus_22.png")
        assert label.dtype == np.uint8
        assert np.array_equal(label, disc.astype(int) + cup)


def test_the_reference_is_the_consensus_of_the_experts(published):
    folder = convert(published)
    for case in ("Bosch_Image101", "Remidio_IMG_2431"):
        labels = [read(folder, "expertsTr", f"expert{expert}", f"{case}.png") for expert in range(1, 6)]
        reference = read(folder, "labelsTr", f"{case}.png")
        assert np.array_equal(reference, consensus(labels))
        assert set(np.unique(reference)) == {0, 1, 2}


def test_nnunet_accepts_the_dataset_and_is_not_disturbed_by_the_experts(published, assert_accepted_by_nnunet):
    folder = convert(published)
    content = json.loads((folder / "dataset.json").read_text())
    assert content["experts"] == ["expert1", "expert2", "expert3", "expert4", "expert5"]
    assert content["labels"] == {"background": 0, "optic_disc_rim": 1, "optic_cup": 2}
    assert content["channel_names"] == {"0": "R", "1": "G", "2": "B"}
    assert content["numTraining"] == 4
    assert_accepted_by_nnunet(folder)


def test_doctors_without_files_or_with_an_empty_disc_are_absent_and_do_not_count(published, train):
    for structure in ("Disc", "Cup"):
        mask_file(train, 2, "Forus", structure, "22").unlink()
        save_mask(mask_file(train, 5, "Forus", structure, "22"), np.zeros(SHAPES["Forus"], bool))
    folder = convert(published)
    present = [expert for expert in range(1, 6) if (folder / f"expertsTr/expert{expert}/Forus_22.png").exists()]
    assert present == [1, 3, 4]
    labels = [read(folder, "expertsTr", f"expert{expert}", "Forus_22.png") for expert in present]
    assert np.array_equal(read(folder, "labelsTr", "Forus_22.png"), consensus(labels))
    assert (folder / "expertsTr/expert2/Bosch_Image101.png").exists()


def test_a_doctor_who_saw_no_cup_is_present(published, train):
    save_mask(mask_file(train, 3, "Forus", "Cup", "22"), np.zeros(SHAPES["Forus"], bool))
    label = read(convert(published), "expertsTr", "expert3", "Forus_22.png")
    assert np.array_equal(label, circle(SHAPES["Forus"], 12).astype(int))


def test_a_disc_without_a_cup_file_counts_for_nothing_and_is_warned_of(published, train, caplog):
    mask_file(train, 3, "Forus", "Cup", "22").unlink()
    assert not (convert(published) / "expertsTr/expert3/Forus_22.png").exists()
    assert "Expert 3/Forus/Disc/22.tif has no mask of the other structure; expert3 is omitted" in caplog.text


def test_a_cup_beyond_the_disc_belongs_to_the_disc(published, train):
    beyond = circle(SHAPES["Forus"], 6, center=(20, 36))
    save_mask(mask_file(train, 1, "Forus", "Cup", "22"), beyond)
    label = read(convert(published), "expertsTr", "expert1", "Forus_22.png")
    assert (label[beyond] == 2).all()
    assert np.array_equal(label != 0, beyond | circle(SHAPES["Forus"], 10))


def test_case_misspellings_and_the_suffix_of_expert_4_are_understood(published, train, files_below):
    before = files_below(convert(published))
    masks = train / MASKS
    (masks / "Expert 2/Bosch/Cup").rename(masks / "Expert 2/Bosch/cup")
    (masks / "Expert 3/Bosch/Disc/Image101.tif").rename(masks / "Expert 3/Bosch/Disc/image101.TIF")
    (masks / "Expert 5/Remidio").rename(masks / "Expert 5/Remedio")
    (masks / "Expert 1").rename(masks / "Expert_1")
    for structure in ("Disc", "Cup"):
        file = mask_file(train, 4, "Forus", structure, "22")
        file.rename(file.with_name("22GLSUSP.tif"))
    shutil.move(train, published / "inner")
    shutil.move(published / "inner", train / "Train")
    assert files_below(convert_dataset("chaksu", published, 601, published.parent / "raw")) == before


def test_the_test_set_may_be_absent(published, files_below, caplog):
    shutil.rmtree(published / "Test")
    assert not [file for file in files_below(convert(published)) if "Ts/" in file]
    assert "no test set" in caplog.text
    assert "Found 4 training cases, but 1009 are published" in caplog.text


def test_masks_that_belong_to_no_photograph_are_left_out_with_a_warning(published, train, caplog):
    save_mask(mask_file(train, 1, "Forus", "Disc", "99"), circle(SHAPES["Forus"], 9))
    convert(published)
    assert "Expert 1/Forus/Disc/99.tif has no photograph" in caplog.text


def test_masks_may_have_an_alpha_channel_soft_edges_or_ones_for_white(published, train):
    disc = circle(SHAPES["Forus"], 10)
    white = disc.astype(np.uint8) * 255
    soft = white.copy()
    soft[20, 34:36] = 200, 90
    pictures = [np.dstack([white, white, white, np.full_like(white, 255)]), soft, disc.astype(np.uint8)]
    for expert, picture in enumerate(pictures, start=1):
        save(mask_file(train, expert, "Forus", "Disc", "22"), picture)
    Image.fromarray(disc).save(mask_file(train, 4, "Forus", "Disc", "22"))  # one bit a pixel
    folder = convert(published)
    for expert in (1, 2, 3, 4):
        label = read(folder, "expertsTr", f"expert{expert}", "Forus_22.png")
        assert np.array_equal(label != 0, disc | circle(SHAPES["Forus"], 3 + expert))


def test_an_alpha_channel_of_a_photograph_is_dropped(published, train, assert_accepted_by_nnunet):
    path = train / PHOTOGRAPHS / "Forus" / "22.png"
    photograph = io.imread(str(path))
    save(path, np.dstack([photograph, np.full(photograph.shape[:2], 255, np.uint8)]))
    folder = convert(published)
    assert np.array_equal(read(folder, "imagesTr", "Forus_22_0000.png"), photograph)
    assert_accepted_by_nnunet(folder)


def test_faulty_masks_of_several_cases_are_all_named_before_anything_is_written(published, train):
    disc, cup = circle(SHAPES["Forus"], 10), circle(SHAPES["Forus"], 4)
    fused = disc * np.uint8(127) + cup * np.uint8(128)
    save(mask_file(train, 1, "Forus", "Disc", "22"), fused)
    save_mask(mask_file(train, 2, "Forus", "Disc", "22"), np.zeros((5, 6), bool))
    save(
        mask_file(train, 3, "Bosch", "Cup", "Image101"), np.random.default_rng(0).integers(0, 9, (40, 52, 3), np.uint8)
    )
    mask_file(train, 4, "Bosch", "Cup", "P11_image_1").write_bytes(b"no picture")
    save(mask_file(train, 5, "Remidio", "Disc", "IMG_2431"), circle(SHAPES["Remidio"], 9) * np.uint8(3))
    with pytest.raises(InputError, match="5 problems") as raised:
        convert(published)
    message = str(raised.value)
    assert f"Expert 1/Forus/Disc/22.tif is not a binary mask: {(disc & ~cup).sum()} pixels have value 127" in message
    assert "Expert 2/Forus/Disc/22.tif has shape (5, 6), but its photograph has (44, 56)" in message
    assert "Expert 3/Bosch/Cup/Image101.tif is a colour image, not a mask" in message
    assert "Expert 4/Bosch/Cup/P11_image_1.tif is not a file of the format .tif" in message
    assert "Expert 5/Remidio/Disc/IMG_2431.tif is not a binary mask" in message
    assert not (published.parent / "raw").exists()


def test_photographs_that_nobody_annotated_are_refused(published, train):
    for expert in range(1, 6):
        for structure in ("Disc", "Cup"):
            mask_file(train, expert, "Bosch", structure, "Image101").unlink()
    save(train / PHOTOGRAPHS / "Forus" / "23.png", np.zeros((*SHAPES["Forus"], 3), np.uint8))
    with pytest.raises(InputError, match=r"2 problems: .*Bosch/Image101.JPG has no masks; .*Forus/23.png has no masks"):
        convert(published)


def test_photographs_on_which_nobody_marked_anything_are_refused(published, train):
    for expert in range(1, 6):
        for structure in ("Disc", "Cup"):
            save_mask(mask_file(train, expert, "Forus", structure, "22"), np.zeros(SHAPES["Forus"], bool))
    with pytest.raises(InputError, match="all masks of .*Forus/22.png are empty"):
        convert(published)


@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_files_that_are_cut_off_are_refused_by_name(published, train, share):
    photograph = next(train.rglob("Image101.JPG"))
    for file in (photograph, mask_file(train, 2, "Bosch", "Disc", "Image101")):
        whole = file.read_bytes()
        file.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(InputError, match=re.escape(str(file))):
            convert(published)
        file.write_bytes(whole)


@pytest.mark.usefixtures("train")
def test_an_error_of_tifffile_is_no_traceback(published, monkeypatch):
    class OldTiffFileError(Exception):
        """As in older versions of tifffile, where it is no ValueError."""

    def fail(_):
        raise OldTiffFileError("not a TIFF file")

    monkeypatch.setattr(image_files, "_CHECKS", image_files._CHECKS | {".tif": fail})
    with pytest.raises(InputError, match="not a TIFF file"):
        convert(published)


def test_grey_pictures_and_unreadable_files_are_no_photographs(published, train):
    save(train / PHOTOGRAPHS / "Forus" / "22.png", np.zeros(SHAPES["Forus"], np.uint8))
    (train / PHOTOGRAPHS / "Remidio" / "IMG_2431.JPG").write_bytes(b"no picture")
    with pytest.raises(
        InputError, match="2 problems: .*22.png is not an 8-bit RGB image.*; .*IMG_2431.JPG cannot be read"
    ):
        convert(published)


def test_unknown_folders_and_files_of_the_same_name_are_refused(published, train):
    save_case(train, "Bosch", "IMAGE101.png")
    save_mask(mask_file(train, 6, "Bosch", "Disc", "Image101"), circle(SHAPES["Bosch"], 9))
    save_mask(mask_file(train, 1, "Zeiss", "Disc", "Image101"), circle(SHAPES["Bosch"], 9))
    save_mask(mask_file(train, 1, "Bosch", "Fovea", "Image101"), circle(SHAPES["Bosch"], 9))
    save_mask(train / MASKS / "Expert 1" / "Image101.tif", circle(SHAPES["Bosch"], 9))
    save(train / PHOTOGRAPHS / "Zeiss" / "1.png", np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(InputError, match="problems") as raised:
        convert(published)
    message = str(raised.value)
    assert "IMAGE101.png and " in message
    assert "Disc/IMAGE101.tif and " in message
    assert "Zeiss/1.png is not in the folder of a known device" in message
    for part in ("Expert 6/Bosch/Disc", "Expert 1/Zeiss/Disc", "Expert 1/Bosch/Fovea", "Expert 1"):
        assert f"{part}/Image101.tif is not in a folder such as" in message


def test_a_folder_of_something_else_is_refused(published, train, tmp_path):
    with pytest.raises(InputError, match="the folder .*nowhere does not exist"):
        convert(tmp_path / "nowhere")
    with pytest.raises(InputError, match=rf"the folder .*{PHOTOGRAPHS} does not exist. Does .* contain Train and Test"):
        convert(train)
    shutil.rmtree(train / PHOTOGRAPHS)
    (train / PHOTOGRAPHS).mkdir()
    with pytest.raises(InputError, match="no photographs in .*Train"):
        convert(published)
    shutil.rmtree(train / MASKS)
    with pytest.raises(InputError, match=f"the folder .*{MASKS} does not exist"):
        convert(published)


@pytest.mark.distributed
def test_the_number_of_processes_changes_nothing(published, files_below):
    alone = convert(published)
    together = convert_dataset("chaksu", published, 601, published.parent / "raw", num_processes=2)
    assert files_below(alone) == files_below(together)
    assert all((alone / file).read_bytes() == (together / file).read_bytes() for file in files_below(alone))


def test_unanimous_annotators_are_followed():
    label = circle((40, 40), 12).astype(np.uint8) + circle((40, 40), 5)
    assert np.array_equal(consensus([label] * 5), label)
    assert np.array_equal(consensus([label]), label)
    assert np.array_equal(consensus([np.full((8, 8), 2, np.uint8)] * 3), np.full((8, 8), 2))
    assert not staple([np.zeros((8, 8), bool)] * 2).any()


def test_three_who_agree_outvote_one_who_draws_elsewhere_and_one_who_draws_too_much():
    shape = (60, 60)
    right = circle(shape, 12).astype(np.uint8) + circle(shape, 6)
    elsewhere = circle(shape, 12, center=(40, 44)).astype(np.uint8) + circle(shape, 6, center=(40, 44))
    too_much = circle(shape, 17).astype(np.uint8) + circle(shape, 11)
    assert np.array_equal(consensus([right, elsewhere, right, too_much, right]), right)


def test_the_consensus_cup_stays_inside_the_consensus_disc():
    generator = np.random.default_rng(0)
    for _ in range(5):
        labels = [generator.integers(0, 3, (12, 12)).astype(np.uint8) for _ in range(3)]
        assert np.array_equal(consensus(labels) != 0, staple([label != 0 for label in labels]))

"""Maps of agreement are not mixed with those of other models."""

from pathlib import Path

import numpy as np
import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from nnunetv2_deferral import maps
from nnunetv2_deferral.agreement_maps import (
    AGREEMENT,
    DISAGREEMENT,
    AgreementFolder,
    MultiRaterModel,
    check_folder,
    index_file,
    map_file,
)
from nnunetv2_deferral.errors import InputError
from nnunetv2_deferral.files import write_json

MODEL = {"dataset": "D", "plans": "P", "configuration": "2d", "trainer": "T"}
PROPERTIES = {
    "sitk_stuff": {"spacing": (1.0, 1.0, 1.0), "origin": (0.0, 0.0, 0.0), "direction": tuple(np.eye(3).flatten())},
    "spacing": [1.0, 1.0, 1.0],
}


def model(*raters):
    return MultiRaterModel(**MODEL, raters=raters)


def write(folder: Path, structures=("nodule",)):
    written = AgreementFolder(
        folder=folder,
        file_ending=".nii.gz",
        writer=SimpleITKIO(),
        model=model("ann", "bob"),
        structures=structures,
    )
    values = np.full((len(structures), 2, 3, 4), 0.25, dtype=np.float32)
    written.write("x", {AGREEMENT: values, DISAGREEMENT: values}, PROPERTIES)


def test_one_structure_has_a_map_of_each_kind_and_several_have_a_folder_each(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "two", ("rim", "core"))
    for kind in (AGREEMENT, DISAGREEMENT):
        assert map_file(tmp_path / "one", kind, "x", ".nii.gz").is_file()
        assert [path.name for path in sorted((tmp_path / "two" / "deferral" / kind).iterdir())] == ["1", "2"]
    found = SimpleITKIO().read_seg(str(map_file(tmp_path / "two", AGREEMENT, "x", ".nii.gz", 2)))[0]
    np.testing.assert_allclose(found, 0.25, atol=1e-5)


def test_maps_of_another_model_are_refused_with_the_difference(tmp_path):
    check_folder(tmp_path, model("ann", "bob"))
    write(tmp_path)
    check_folder(tmp_path, model("ann", "bob"))
    with pytest.raises(InputError, match=r"already contains .* \(raters: \['ann', 'bob'\] there, \['ann'\] now\)"):
        check_folder(tmp_path, model("ann"))
    with pytest.raises(InputError, match="already contains the agreement maps of another model. Use another"):
        check_folder(tmp_path, None)  # a deferral model
    index_file(tmp_path).unlink()
    write_json({}, maps.index_file(tmp_path))
    with pytest.raises(InputError, match="already contains the deferral maps of another model"):
        check_folder(tmp_path, model("ann", "bob"))

"""The bundled NiiVue is what its lockfile builds, and its licence lies beside it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from nnunetv2_deferral import review

STATIC = Path(review.__file__).parent / "static"
TOOLS = Path(__file__).parents[2] / "tools" / "niivue"
VENDOR = STATIC / "vendor"


def test_the_licences_of_all_that_is_bundled_lie_beside_it():
    text = (VENDOR / "niivue.LICENSE.txt").read_text()
    version = json.loads((TOOLS / "package.json").read_text())["devDependencies"]["@niivue/niivue"]
    assert f"@niivue/niivue {version}" in text
    assert "BSD 2-Clause License" in text
    for name in ("fflate", "gl-matrix", "nifti-reader-js"):
        assert f"\n{name} " in text


def test_only_the_adapter_knows_niivue_and_loads_it_when_it_is_opened():
    for module in STATIC.glob("*.js"):
        text = module.read_text()
        assert ("vendor/" in text) == (module.name == "volume_view.js"), module.name
    assert 'await import("./vendor/niivue.js")' in (STATIC / "volume_view.js").read_text()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_the_lockfile_builds_the_bundle_byte_for_byte(tmp_path):
    for name in ("package.json", "package-lock.json", "build.mjs", "zarrita_stub.js", "niivue_license.txt"):
        shutil.copy(TOOLS / name, tmp_path)
    try:
        installed = subprocess.run(
            ["npm", "ci", "--no-audit", "--no-fund"], cwd=tmp_path, capture_output=True, text=True, timeout=180
        )
    except subprocess.TimeoutExpired:
        pytest.skip("the npm registry does not answer")
    if installed.returncode:
        pytest.skip(f"the npm registry cannot be reached: {installed.stderr.strip().splitlines()[:1]}")
    built = tmp_path / "built"
    built.mkdir()
    subprocess.run(["node", "build.mjs", str(built)], cwd=tmp_path, check=True, timeout=180)
    for file in sorted(VENDOR.iterdir()):
        assert (built / file.name).read_bytes() == file.read_bytes(), file.name
    assert {file.name for file in built.iterdir()} == {file.name for file in VENDOR.iterdir()}

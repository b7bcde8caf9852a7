from skimage import io

from nnunetv2_deferral.nnunet.progress import KEYS, plot_progress
from nnunetv2_deferral.settings import resolve_settings


def test_a_picture_is_drawn_from_the_first_epoch_on(tmp_path):
    settings = resolve_settings(None, num_experts=2)
    for epochs in (1, 3):
        log = {key: [[0.01, 0.02] if key == "deferral_share" else 0.5] * epochs for key in (*KEYS, "mean_fg_dice")}
        plot_progress(log, settings, str(tmp_path))
        assert io.imread(tmp_path / "deferral_progress.png").std() > 0
    assert [file.name for file in tmp_path.iterdir()] == ["deferral_progress.png"]

from skimage import io

from nnunetv2_deferral.nnunet.progress import KEYS, epochs_since_best, plot_progress
from nnunetv2_deferral.settings import resolve_settings


def test_a_picture_is_drawn_from_the_first_epoch_on(tmp_path, drawn_figures):
    settings = resolve_settings(None, num_experts=2)
    for epochs in (1, 3):
        log = {key: [[0.01, 0.02] if key == "deferral_share" else 0.5] * epochs for key in (*KEYS, "mean_fg_dice")}
        plot_progress(log, settings, str(tmp_path))
        assert io.imread(tmp_path / "deferral_progress.png").std() > 0
    assert [file.name for file in tmp_path.iterdir()] == ["deferral_progress.png"]


def test_epochs_are_counted_from_the_first_of_the_best():
    assert epochs_since_best([0.5]) == 0
    assert epochs_since_best([0.1, 0.7, float("nan"), 0.7]) == 2
    assert epochs_since_best([0.3, 0.1, 0.2], lowest=True) == 1
    assert epochs_since_best([float("nan")] * 3) == 2

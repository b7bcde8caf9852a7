import pytest
from skimage import io

from nnunetv2_deferral.nnunet.progress import KEYS, _draw, epochs_since_best, plot_progress
from nnunetv2_deferral.settings import resolve_settings


def test_a_picture_is_drawn_from_the_first_epoch_on(tmp_path, drawn_figures):
    settings = resolve_settings(None, num_experts=2)
    for epochs in (1, 3):
        log = {key: [[0.01, 0.02] if key == "deferral_share" else 0.5] * epochs for key in (*KEYS, "mean_fg_dice")}
        plot_progress(log, settings, str(tmp_path))
        assert io.imread(tmp_path / "deferral_progress.png").std() > 0
    assert [file.name for file in tmp_path.iterdir()] == ["deferral_progress.png"]


@pytest.mark.parametrize("epochs", [1, 3])
def test_terms_that_are_not_trained_have_no_panel_and_epochs_are_whole_numbers(epochs):
    settings = resolve_settings(None, num_experts=2)
    log = {key: [[0.01, 0.02] if key == "deferral_share" else 0.5] * epochs for key in (*KEYS, "mean_fg_dice")}
    log |= {f"{phase}_loss_balance": [0.0] * epochs for phase in ("train", "val")}
    figure = _draw(log, settings)
    titles = [axes.get_title(loc="left") for axes in figure.axes]
    assert len(titles) == 5
    assert not any("load-balancing" in title for title in titles)
    for axes in figure.axes:
        shown = [tick for tick in axes.get_xticks() if axes.get_xlim()[0] <= tick <= axes.get_xlim()[1]]
        assert shown == [*range(1, epochs + 1)]


def test_epochs_are_counted_from_the_first_of_the_best():
    assert epochs_since_best([0.5]) == 0
    assert epochs_since_best([0.1, 0.7, float("nan"), 0.7]) == 2
    assert epochs_since_best([0.3, 0.1, 0.2], lowest=True) == 1
    assert epochs_since_best([float("nan")] * 3) == 2

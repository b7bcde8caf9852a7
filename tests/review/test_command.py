"""nnUNetv2_deferral_review: what it says, and what it does not start with."""

import contextlib
import json
import signal
import socket

import pytest
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from own_process import OwnProcess
from small_review import GEOMETRY, free_port, make_folders, volume_arrays, write_case, write_dataset_json, write_volumes
from waiting import wait_for

from nnunetv2_deferral.commands import review as command
from nnunetv2_deferral.commands.review import main
from nnunetv2_deferral.commands.worklist import write_worklist
from nnunetv2_deferral.review import server


def options(folders, **changes):
    values = {"-i": folders.predictions, "-images": folders.images, "-ref": folders.references, "-o": folders.reviews}
    values |= {"--port": free_port()}
    return [str(part) for name, value in (values | changes).items() if value is not None for part in (name, value)]


def test_it_prints_a_link_for_everyone(tmp_path, monkeypatch, capsys):
    folders, served, port = write_volumes(tmp_path), [], free_port()
    monkeypatch.setattr(server, "serve", lambda app, listening, meanwhile, **_: served.append(listening.getsockname()))
    main(options(folders, **{"--port": port}))
    printed = capsys.readouterr().out
    assert served == [("127.0.0.1", port)]
    for name in ("coordinator", "ann", "bob"):
        assert f"{name:11}  http://127.0.0.1:{port}/#enter=" in printed
    assert json.loads((folders.reviews / "review.json").read_text()) == {"cases": {}}


def fails(capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert message in printed.err
    return printed


@pytest.mark.parametrize("port", [-1, 0, 65536, 70000, 10**30])
def test_a_port_that_does_not_exist_is_refused_before_anything_is_printed(tmp_path, capsys, port):
    folders = write_volumes(tmp_path)
    message = f"error: the port must be from 1 to 65535, got {port} (--port)"
    assert fails(capsys, options(folders, **{"--port": port}), message).out == ""
    assert not folders.reviews.exists()


def test_a_port_that_is_in_use_is_refused_before_anything_is_printed(tmp_path, capsys):
    folders = write_volumes(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        message = f"error: port {port} on 127.0.0.1 is in use by another program; choose another one (--port)"
        assert fails(capsys, options(folders, **{"--port": port}), message).out == ""


def test_the_port_is_free_again_after_an_error(tmp_path, capsys):
    folders, port = write_volumes(tmp_path), free_port()
    (folders.images / "case_b_0000.nii.gz").unlink()
    fails(capsys, options(folders, **{"--port": port}), "case_b_0000.nii.gz")
    socket.create_server(("127.0.0.1", port)).close()


def test_a_map_that_cannot_be_read_ends_the_server_with_its_name(tmp_path, capsys):
    folders, port = write_volumes(tmp_path), free_port()
    route = folders.predictions / "deferral" / "route" / "case_b.nii.gz"
    route.write_bytes(route.read_bytes()[:100])
    assert "#enter=" in fails(capsys, options(folders, **{"--port": port}), str(route)).out
    socket.create_server(("127.0.0.1", port)).close()


def test_where_nothing_was_deferred_there_are_no_links(tmp_path, capsys):
    folders = make_folders(tmp_path)
    image, model, route, reference = volume_arrays()
    write_case(
        folders, "case_a", image=image, model=model, route=0 * route, reference=reference,
        ending=".nii.gz", writer=SimpleITKIO(), properties=GEOMETRY,
    )  # fmt: skip
    write_dataset_json(folders, ".nii.gz")
    printed = fails(capsys, options(folders), "nothing was deferred in the 1 case of ")
    assert "#enter=" not in printed.out
    assert not folders.reviews.exists()


def test_where_no_region_is_listed_there_are_no_links(tmp_path, capsys):
    folders, listed = write_volumes(tmp_path), tmp_path / "list"
    write_worklist(folders.predictions, listed, images=None, max_minutes=0.001)
    printed = fails(capsys, [*options(folders), "-worklist", str(listed)], f"no region is listed in {listed}, ")
    assert "#enter=" not in printed.out
    assert not folders.reviews.exists()


def test_an_interruption_while_the_maps_are_read_shows_no_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "review", raising(KeyboardInterrupt()))
    with pytest.raises(SystemExit) as stopped:
        main(options(write_volumes(tmp_path)))
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "\nStopped.\n"


def test_an_interruption_ends_the_server_without_a_traceback(tmp_path):
    folders, port = write_volumes(tmp_path), free_port()

    def answers():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return connection.recv(100).startswith(b"HTTP")
        return False

    with OwnProcess(main, options(folders, **{"--port": port}), folder=tmp_path) as process:
        wait_for(answers, alive=process.runs)
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0
        assert "#enter=" in process.printed
        assert "Traceback" not in process.errors


@pytest.mark.parametrize("name", ["-i", "-images", "-ref"])
def test_a_folder_that_is_not_there_is_named(tmp_path, capsys, name):
    folders = write_volumes(tmp_path)
    fails(capsys, options(folders, **{name: tmp_path / "nowhere"}), f"the folder {tmp_path / 'nowhere'} does not exist")


@pytest.mark.parametrize("place", ["predictions", "predictions/deferral", "labels/reviews", "."])
def test_answers_may_not_lie_among_the_inputs(tmp_path, capsys, place):
    fails(capsys, options(write_volumes(tmp_path), **{"-o": tmp_path / place}), "overlaps the input folder")


def test_predictions_of_a_stock_model_are_refused(tmp_path, capsys):
    folders = write_volumes(tmp_path)
    (folders.predictions / "deferral" / "deferral.json").unlink()
    fails(capsys, options(folders), "no deferral maps")


def test_a_missing_image_is_named(tmp_path, capsys):
    folders = write_volumes(tmp_path)
    (folders.images / "case_b_0000.nii.gz").unlink()
    fails(capsys, options(folders), "case_b_0000.nii.gz")
    assert not folders.reviews.exists()


@pytest.mark.parametrize("name", ["../ann", ".review", "a/b", " "])
def test_experts_whose_names_are_no_folders_are_refused(tmp_path, capsys, name):
    folders = write_volumes(tmp_path)
    index = folders.predictions / "deferral" / "deferral.json"
    index.write_text(index.read_text().replace('"ann"', json.dumps(name)))
    fails(capsys, options(folders), "is not a valid name of an expert")


PART = "q7Jm-very-secret-2Kx"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        f'{{"coordinator": "{PART}',
        f'["{PART}"]',
        f'"{PART}"',
        f'{{"coordinator": ["{PART}"], "experts": {{}}}}',
        f'{{"coordinator": "", "experts": {{"ann": {{"{PART}": 1}}}}}}',
        f'{{"coordinator": "", "experts": "{PART}"}}',
        f'{{"coordinator": "", "experts": ["{PART}"]}}',
        '{"coordinator": "", "experts": {"ann": null}}',
        '{"coordinator": 5, "experts": {}}',
        f'{{"coordinator": "{PART}"}}',
        f'{{"coordinator": "{PART}", "experts": {{}}}}\xff',
        "[" * 5000,
    ],
)
def test_damaged_links_are_an_error_that_says_what_to_do_and_shows_no_secret(tmp_path, capsys, content):
    folders = write_volumes(tmp_path)
    hidden = folders.reviews / ".review"
    hidden.mkdir(parents=True)
    (hidden / "access.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(SystemExit) as stopped:
        main(options(folders))
    assert stopped.value.code == 2
    printed = capsys.readouterr()
    assert "access.json is damaged; delete it to create new links" in printed.err
    assert PART not in printed.err + printed.out


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_package_of_the_extra_is_named_with_how_to_install_it(tmp_path, monkeypatch, capsys, package):
    monkeypatch.setattr(command, "review", raising(ModuleNotFoundError(f"No module named {package!r}", name=package)))
    fails(capsys, options(write_volumes(tmp_path)), "pip install 'nnunetv2-deferral[review]'")


def test_any_other_failed_import_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "review", raising(ModuleNotFoundError("No module named 'mat'", name="mat")))
    with pytest.raises(ModuleNotFoundError, match="mat"):
        main(options(write_volumes(tmp_path)))


def raising(error):
    def review(*_arguments, **_options):
        raise error

    return review

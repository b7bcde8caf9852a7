"""Fixtures of the review's tests; `small_review` is imported late, so that its absence skips tests and breaks none."""

import pytest


@pytest.fixture
def serve():
    """Serve some folders; closed at the end."""
    from small_review import serve_folders

    opened = []

    def start(folders, **options):
        opened.append(serve_folders(folders, **options))
        return opened[-1]

    yield start
    for served in opened:
        served.review.store.close()


@pytest.fixture
def served(tmp_path, serve):
    """Two oblique volumes, served."""
    from small_review import write_volumes

    return serve(write_volumes(tmp_path))


@pytest.fixture
def snapshot():
    """The content of every file below a folder, for comparing before and after."""
    return lambda folder: {
        str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()
    }

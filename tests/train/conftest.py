"""What many tests of training train on."""

import pytest
from training import write_photos


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    return write_photos(tmp_path_factory.mktemp("photos"))

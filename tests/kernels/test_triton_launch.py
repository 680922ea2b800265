"""Triton's interpreter and NumPy: versions that do not go together are refused with the way out."""

import pytest

from kernels.triton_ops.launch import check_interpreter


@pytest.mark.parametrize("versions", [("3.6.0", "2.3.5"), ("3.7.0", "2.4.6"), ("3.9.0+git1", "2.10.0")])
def test_versions_that_work(versions):
    check_interpreter(*versions)


@pytest.mark.parametrize("versions", [("3.6.0", "2.4.0"), ("3.5.1", "2.10.1")])
def test_versions_that_do_not(versions):
    with pytest.raises(ImportError, match=r"numpy<2\.4"):
        check_interpreter(*versions)

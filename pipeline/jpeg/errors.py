"""The errors of JPEG files."""


class JpegError(ValueError):
    """A file that cannot be restored; the message is the reason. size: (height, width) in pixels, if known."""

    size: tuple[int, int] | None = None


class BitstreamError(JpegError):
    """The file is broken, or not a JPEG file; the message says what is wrong."""


class UnsupportedJpeg(JpegError):  # noqa: N818 - not an error of the file: it is passed through
    """A valid kind of JPEG that is not modelled; the message names it."""

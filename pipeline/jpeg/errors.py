"""Why a JPEG file cannot be restored."""


class JpegError(ValueError):
    """A file that the posterior restoration cannot take; the message is the reason."""


class BitstreamError(JpegError):
    """The file is broken, or not a JPEG at all; the message says what was wrong."""


class UnsupportedJpeg(JpegError):  # noqa: N818 - not an error of the file: it is passed through
    """A valid kind of JPEG that is not modelled here; the message says which."""

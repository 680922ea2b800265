"""An output folder in an object store, which supports neither appending nor renaming.

    s3://bucket/out/
        manifest.run.json             the run's identity
        manifest/<time>-<run>-<number>.jsonl
        manifest.history/<time>-<random>.jsonl
        photos/a.png, shards/000.tar, ...

Objects are written atomically, so outputs are uploaded under their final names. All state is in the store, so a run can
be continued on another machine. The manifest is described in manifest_objects.py.

A shard is a file in the local temporary folder (TMPDIR) until it is uploaded, while the next one is filled: there must
be room for both. `kill -9` leaves them there."""

import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pipeline.inputs.remote import Remote, RemoteError, as_remote_errors
from pipeline.outputs.record import SinkError
from pipeline.outputs.store import OutputNameError

_UPLOADS = 8
_NAME_BYTES = 1024  # S3's and Google's limit for a whole path


class RemoteStore:
    """A folder of an object store. A few threads upload images in the background; `settle` waits for them."""

    def __init__(self, folder: Remote) -> None:
        """Must be closed with `close`."""
        self.address = folder
        self.scratch = Path(tempfile.mkdtemp(prefix="restore-"))
        self._pool = ThreadPoolExecutor(_UPLOADS, "upload")
        self._mutex = threading.Lock()
        self._uploads: list[Future[None]] = []

    def put(self, name: str, data: bytes) -> None:
        """See Store. Only starts the upload; raises SinkError, sooner or later, if an earlier one has failed."""
        target = self._target(name)
        with self._mutex:
            waiting = [upload for upload in self._uploads if not upload.done() or upload.exception()]
            self._uploads = [*waiting, self._pool.submit(self._put, target, data)]
            oldest = waiting[0] if len(waiting) >= _UPLOADS else None
        if oldest is not None:
            oldest.result()

    def publish(self, temporary: Path, name: str) -> None:
        """See Store."""
        target = self._target(name)
        try:
            self._attempt(target, lambda: self.address.fs.put_file(str(temporary), target.address))
        finally:
            temporary.unlink(missing_ok=True)

    def remove(self, name: str) -> None:
        """See Store."""
        self.settle()
        target = self._target(name)

        def unlink() -> None:
            if target.exists():
                target.unlink()

        self._attempt(target, unlink)

    def settle(self) -> None:
        """Waits for all uploads. Raises SinkError."""
        with self._mutex:
            uploads, self._uploads = self._uploads, []
        for upload in uploads:
            upload.result()

    def write_error(self, error: OSError, name: str) -> SinkError:
        """See Store; the error is the scratch folder's."""
        return SinkError(
            f"{self.scratch}: cannot be written: {error.strerror} ({name}): shards are built here before they are "
            "uploaded; start the run again to complete it, with TMPDIR a folder that has room for the two largest"
        )

    def close(self) -> None:
        """Waits for running uploads, and removes the scratch folder."""
        self._pool.shutdown(cancel_futures=True)
        shutil.rmtree(self.scratch, ignore_errors=True)

    def _target(self, name: str) -> Remote:
        target = self.address / name
        try:
            length = len(target.address.encode())
        except UnicodeEncodeError as error:
            raise OutputNameError(f"no object can be named {name!r}: it is not valid Unicode") from error
        if length > _NAME_BYTES:
            raise OutputNameError(f"no object can be named {name!r}: {length} bytes are more than {_NAME_BYTES}")
        return target

    def _put(self, target: Remote, data: bytes) -> None:
        self._attempt(target, lambda: target.write_bytes(data))

    def _attempt(self, target: Remote, action: Callable[[], object]) -> None:
        try:
            with as_remote_errors(target):
                action()
        except (RemoteError, OSError) as error:
            raise SinkError(f"cannot be written: {error}; start the run again to complete it") from error

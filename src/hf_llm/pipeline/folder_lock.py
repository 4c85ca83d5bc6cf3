"""Let one process group at a time write to a folder: a lock file that names its holder.

The file is made by a hard link, which is atomic on network file systems too, where flock is not reliable. A lock that
outlives its process is taken over: on the same host when the process is gone, otherwise when the file has not been
touched for `SILENT_SECONDS`, since its holder touches it every `HEARTBEAT_SECONDS`.
"""

import atexit
import json
import os
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

from hf_llm.core.console import is_main_process, print_main
from hf_llm.core.errors import UserError
from hf_llm.core.process_identity import is_alive, is_local, process_identity

LOCK_FILE = "lock.json"
HEARTBEAT_SECONDS = 10.0
SILENT_SECONDS = 90.0  # a holder on another host counts as dead when it has not touched its lock for so long
POLL_SECONDS = 0.2
CLAIM_SECONDS = 30.0  # a process that takes over a lock needs far less; one that has died meanwhile is ignored then

# The locks of this process, by the lock file's resolved path.
_held: dict[Path, "FolderLock"] = {}


class FolderLock:
    """The lock of `folder`. Within one process it may be acquired several times; the last `release` gives it up."""

    def __init__(self, folder: Path, name: str = LOCK_FILE):
        self.folder = Path(folder)
        self.path = (self.folder / name).absolute()  # the heartbeat finds it in whatever folder the process works later
        self.token = ""
        self._count = 0
        self._pid = 0
        self._stop = threading.Event()
        self._file_guard = threading.Lock()  # a heartbeat and a release do not meet

    def acquire(self) -> "FolderLock":
        """Take the lock, or the one of a dead process; return the object to release, which may be an earlier one.

        Raises UserError, with the holder and what to do, where a living process has it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        own = _held.get(self.path.resolve())
        if own is not None and own._pid == os.getpid() and own.is_own():
            own._count += 1
            return own

        self.token = uuid.uuid4().hex
        while not self._create_file():
            holder = read_holder(self.path)
            if holder is not None:
                self._take_over_or_refuse(holder)

        self._count = 1
        _held[self.path.resolve()] = self
        self._pid = os.getpid()
        atexit.register(self._release_at_exit)
        threading.Thread(target=self._beat, name=f"heartbeat of {self.path}", daemon=True).start()
        return self

    def release(self) -> None:
        """Give the lock up, unless it has been acquired once more than released."""
        self._count -= 1
        if self._count > 0 or self._pid != os.getpid():
            return
        self._stop.set()
        _held.pop(self.path.resolve(), None)
        atexit.unregister(self._release_at_exit)
        with self._file_guard:
            if self.is_own():
                self.path.unlink(missing_ok=True)

    def is_own(self) -> bool:
        """Whether the lock file is the one that this object has made."""
        holder = read_holder(self.path)
        return holder is not None and holder.get("token") == self.token

    def __enter__(self) -> "FolderLock":
        return self.acquire()

    def __exit__(self, *_: object) -> None:
        _held.get(self.path.resolve(), self).release()

    def _release_at_exit(self) -> None:
        self._count = 1
        self.release()

    def _create_file(self) -> bool:
        """Make the lock file with its whole content at once; False where there is one already."""
        temporary = self.path.with_name(f"{self.path.name}.{self.token}.tmp")
        record = {**process_identity(), "token": self.token, "launch": launch_name(), "began": _utc_timestamp()}
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())

        try:
            os.link(temporary, self.path)
            return True
        except FileExistsError:
            # NFS may report this for a link that it has made, when its first answer was lost.
            return os.stat(temporary).st_nlink == 2
        except OSError:  # no hard links on this file system
            return self._create_exclusively(temporary)
        finally:
            temporary.unlink(missing_ok=True)

    def _create_exclusively(self, temporary: Path) -> bool:
        try:
            descriptor = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except FileExistsError:
            return False
        with open(descriptor, "wb") as file:
            file.write(temporary.read_bytes())
        return True

    def _take_over_or_refuse(self, holder: dict[str, Any]) -> None:
        """Remove the lock of a dead `holder`, so that it can be made again. Raises UserError where the holder lives."""
        if is_local(holder):
            if is_alive(holder):
                raise UserError(self._describe_holder(holder))
            reason = "that process is gone"
        else:
            silence = self._wait_for_heartbeat(holder)
            if silence is None:  # released, or taken over by another process
                return
            reason = f"it has given no sign of life for {silence:.0f} s"

        if self._remove_file_of(holder):
            print_main(
                f"{self.folder}: the lock of process {holder.get('pid')} on {holder.get('host')} (since "
                f"{holder.get('began')}) is taken over, since {reason}"
            )

    def _wait_for_heartbeat(self, holder: dict[str, Any]) -> float | None:
        """Wait until the holder, on another host, is known to be dead; return the seconds since its last heartbeat.

        Returns None where the lock is no longer its own. Raises UserError at its first sign of life.
        """
        is_announced = False
        while True:
            present = read_holder(self.path)
            if present is None or present.get("token") != holder.get("token"):
                return None
            silence = self._file_system_time() - present["touched"]
            if present["touched"] != holder["touched"]:
                raise UserError(self._describe_holder(present, max(0.0, silence)))
            if silence > SILENT_SECONDS:
                return silence
            if not is_announced:
                print_main(
                    f"{self.folder} is locked by process {holder.get('pid')} on {holder.get('host')}; waiting up to "
                    f"{SILENT_SECONDS:.0f} s for a sign of life"
                )
                is_announced = True
            time.sleep(POLL_SECONDS)

    def _file_system_time(self) -> float:
        """Return the present time by the clock of the file system, which may be another host's."""
        probe = self.path.with_name(f"{self.path.name}.{self.token}.probe.tmp")
        probe.touch()
        try:
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _remove_file_of(self, holder: dict[str, Any]) -> bool:
        """Remove the lock file if it is still this dead holder's.

        Of several processes that take over the same lock, only the one that makes the claim file removes it: otherwise
        a slow one would remove the new lock of a faster one.
        """
        claim = self.path.with_name(f"{self.path.name}.{holder.get('token')}.claim")
        try:
            os.close(os.open(claim, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            self._drop_old_claim(claim)
            return False
        try:
            present = read_holder(self.path)
            is_unchanged = present is not None and present.get("token") == holder.get("token")
            if is_unchanged:
                self.path.unlink(missing_ok=True)
            return is_unchanged
        finally:
            claim.unlink(missing_ok=True)

    def _drop_old_claim(self, claim: Path) -> None:
        time.sleep(POLL_SECONDS)
        try:
            age = self._file_system_time() - claim.stat().st_mtime
        except FileNotFoundError:
            return
        if age > CLAIM_SECONDS:
            claim.unlink(missing_ok=True)

    def _describe_holder(self, holder: dict[str, Any], silence: float | None = None) -> str:
        """Return the error for a lock whose holder lives."""
        heartbeat = "" if silence is None else f", last sign of life {silence:.0f} s ago"
        where = f"on {holder.get('host')}" + ("" if silence is None else ", not this host")
        text = (
            f"{self.folder} is in use by process {holder.get('pid')} {where} (since {holder.get('began')}{heartbeat}); "
            "a second one would write to the same files.\n  Wait for it, or stop it (kill it once, and a training "
            "saves and ends), or give this run another name (--name=...)."
        )
        if silence is not None:
            text += f" If you know that it is dead, delete {self.path}."
        return text

    def _beat(self) -> None:
        """Touch the lock file until it is released; end this process where another has taken the lock over."""
        while not self._stop.wait(HEARTBEAT_SECONDS):
            with self._file_guard:
                if self._stop.is_set():
                    return
                is_lost = not self._touch_own_file()
            if is_lost:
                print(
                    f"\nerror: {self.folder}: another process has taken over the lock, since this one gave no sign of "
                    f"life for {SILENT_SECONDS:.0f} s; this one ends",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)

    def _touch_own_file(self) -> bool:
        """Touch the lock file, or make it again where it was deleted by hand; return False where it is another's."""
        try:
            holder = read_holder(self.path)
            if holder is None:
                is_own = self._create_file()
            else:
                is_own = holder.get("token") == self.token
            if is_own:
                os.utime(self.path)
        except OSError:
            return True  # a file server that does not answer, for example; the next beat tries again
        return is_own


def check_not_held(folder: Path, name: str = LOCK_FILE) -> None:
    """Raise UserError where a living process, that is none of this launch, has the lock of a folder.

    Looks at the lock only, and waits for nothing: a holder on another host counts as alive.
    """
    lock = FolderLock(folder, name)
    holder = read_holder(lock.path)
    own = _held.get(lock.path.resolve())
    if holder is None or (own is not None and own.token == holder.get("token")):
        return
    if not is_main_process() and holder.get("launch") == launch_name():
        return
    if is_local(holder) and not is_alive(holder):
        return
    silence = None if is_local(holder) else max(0.0, time.time() - holder["touched"])
    if silence is None or silence < SILENT_SECONDS:
        raise UserError(lock._describe_holder(holder, silence))


def read_holder(path: Path) -> dict[str, Any] | None:
    """Read who holds a lock, and when it was last touched, as `touched`; None where there is no lock file.

    The file is opened and not only looked up: a network file system then asks its server for the present time stamp.
    """
    try:
        with open(path, encoding="utf-8") as file:
            touched = os.fstat(file.fileno()).st_mtime
            text = file.read()
    except FileNotFoundError:
        return None
    try:
        holder = json.loads(text)
    except ValueError:  # being written, where there are no hard links
        holder = {}
    return {**holder, "touched": touched} if isinstance(holder, dict) else {"touched": touched}


def launch_name() -> str:
    """Return what the processes of one launch have in common; empty without a launcher."""
    names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    return " ".join(os.environ[name] for name in names if name in os.environ)


def _utc_timestamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

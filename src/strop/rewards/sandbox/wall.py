"""The wall: bubblewrap. A program behind it has its own user, pid, net, ipc, uts and mount namespaces, sees `/usr` and
the interpreter read-only and an empty `/tmp`, has no capability, no environment and no network, and dies with this
process.

Two of them, one in the other. The outer makes the tree of mounts and all namespaces; the inner is the first process
there, sets the filter, and reaps. Root gives itself up between the two, for a real unprivileged uid of each run's own:
limits on processes do not hold for root, not even inside. (Not before the first: the interpreter may lie where nobody
else may look.)
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

from strop.rewards.sandbox import seccomp, tree
from strop.rewards.sandbox.protocol import PROCESSES, Limits, environment_in, start_apart

_UIDS = range(64200, 64900)
_INSIDE_UID = 64000
_STOP_SECONDS = 10.0
_ETC = ("/etc/ld.so.cache", "/etc/localtime", "/etc/alternatives")
_PATH = "/usr/local/bin:/usr/bin:/bin"


class Wall:
    """See the module's text; a `Sandbox`."""

    name = "bubblewrap"
    missing: tuple[str, ...] = ()
    strict = True

    def __init__(self) -> None:
        self._bwrap = shutil.which("bwrap") or ""
        self._setpriv = shutil.which("setpriv") or ""
        self._root = os.getuid() == 0
        self._filter = seccomp.filter_program()
        self._mounts = _mounts()
        self._uid_locks: dict[int, socket.socket] = {}
        self.fences: tuple[str, ...] = (
            "own user, pid, net, ipc, uts and mount namespaces",
            "no file visible but /usr and the interpreter, read-only",
            "no network",
            "no environment",
            "memory of all processes together",
            "dies with its parent",
            *(["system calls filtered"] if self._filter else []),
            *(["a uid of its own"] if self._root else []),
        )

    def unusable(self) -> str:
        """Why it cannot be tried at all; "" if it can."""
        if not sys.platform.startswith("linux"):
            return f"bubblewrap is for Linux, this is {sys.platform}"
        if not self._bwrap:
            return "bwrap is not installed"
        if self._root and not self._setpriv:
            return "setpriv (util-linux) is not installed, and root cannot be given up without it"
        return ""

    def start(self, arguments: list[str], limits: Limits) -> subprocess.Popen[bytes]:
        lock, uid = _free_uid() if self._root else (None, _INSIDE_UID)
        passed = [seccomp.filter_pipe(self._filter)] if self._filter else []
        try:
            last = ["--die-with-parent", *(["--seccomp", str(passed[0])] if passed else [])]
            command = self._command(limits)
            if self._root:
                command += [self._setpriv, f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
            command += [self._bwrap, "--unshare-user", "--dev-bind", "/", "/"]
            command += ["--uid", str(uid), "--gid", str(uid), *last, "--", os.path.realpath(sys.executable), *arguments]
            process = start_apart(command, "/", {}, passed)
        except BaseException:
            if lock is not None:
                lock.close()
            raise
        finally:
            for descriptor in passed:
                os.close(descriptor)
        if lock is not None:
            self._uid_locks[process.pid] = lock
        return process

    def stop(self, process: subprocess.Popen[bytes]) -> None:
        with self._uid_locks.pop(process.pid, contextlib.nullcontext()):
            below = tree.descendants(process.pid) if process.poll() is None else []
            try:
                # The first one inside: the kernel ends all others of a pid namespace before it, and this one follows.
                os.kill(below[1], signal.SIGKILL)
                process.wait(_STOP_SECONDS)
            except (IndexError, OSError, subprocess.TimeoutExpired):  # it did not come that far, or has ended
                process.kill()
                process.wait()

    def too_much(self, process: subprocess.Popen[bytes], limits: Limits) -> str:
        pids = tree.descendants(process.pid)
        if len(pids) > PROCESSES + 4:
            return f"it ran more than {PROCESSES} processes"
        held = tree.memory_bytes(pids)
        return f"its processes held {held} bytes of memory" if held > limits.memory_bytes else ""

    def _command(self, limits: Limits) -> list[str]:
        command = [self._bwrap, "--die-with-parent", "--new-session", "--clearenv"]
        # The first process inside is the second bwrap: with one of its own, this one ends before that has.
        command += ["--as-pid-1", *([] if self._root else ["--unshare-user"])]
        command += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
        for name, value in environment_in("/tmp", _PATH).items():
            command += ["--setenv", name, value]
        size = str(max(limits.file_bytes, 1 << 16))
        command += self._mounts
        command += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size", size, "--tmpfs", "/dev/shm"]
        command += ["--perms", "1777", "--size", size, "--tmpfs", "/tmp", "--chdir", "/tmp"]
        return [*command, "--remount-ro", "/dev", "--remount-ro", "/"]


def visible_paths() -> list[str]:
    """The folders of packages that can be imported inside."""
    named = [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")]
    return [os.path.realpath(path) for path in named if os.path.isdir(path)]


def _mounts() -> list[str]:
    """Arguments that make the tree: `/usr`, the libraries, the interpreter, packages."""
    arguments = ["--ro-bind", "/usr", "/usr"]
    for name in ("/lib", "/lib32", "/lib64", "/bin", "/sbin"):
        if os.path.islink(name):
            arguments += ["--symlink", os.readlink(name), name]
        elif os.path.isdir(name):
            arguments += ["--ro-bind", name, name]
    for name in _ETC:
        arguments += ["--ro-bind-try", name, name]
    mounted, folders = ["/usr"], {"/"}
    for path in _interpreter_paths():
        if any(path == done or path.startswith(done + "/") for done in mounted):
            continue
        for above in map(str, reversed(Path(path).parents)):
            if above not in folders:
                arguments += ["--perms", "0755", "--dir", above]
                folders.add(above)
        mounted.append(path)
        arguments += ["--ro-bind", path, path]
    return arguments


def _interpreter_paths() -> list[str]:
    base = os.path.realpath(sys.base_prefix)
    wanted = [os.path.dirname(os.path.realpath(sys.executable)), f"{base}/lib", f"{base}/lib64"]
    wanted += [os.path.realpath(sysconfig.get_path(kind)) for kind in ("stdlib", "platstdlib")]
    wanted += visible_paths()
    return sorted({path for path in wanted if os.path.isdir(path) and path not in ("/", "/lib", "/lib64", "/bin")})


def _free_uid() -> tuple[socket.socket, int]:
    """A uid that no other run on this machine uses now; it is taken until the socket is closed."""
    for uid in _UIDS:
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0strop-sandbox-uid-{uid}")
        except OSError:
            lock.close()
            continue
        return lock, uid
    raise OSError(f"all of the {len(_UIDS)} uids for programs are in use")

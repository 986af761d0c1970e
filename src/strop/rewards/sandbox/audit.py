"""An audit hook against accidents and ordinary mischief, for machines where no wall can be built. It is no wall.

It refuses to start processes, to signal others, to open connections, to load libraries and to write outside of the
working directory, as far as the interpreter tells it. Standard library only.
"""

from __future__ import annotations

import os
import sys
from typing import Any

_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_REFUSED = frozenset(
    {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile", "os.fork", "os.forkpty"}
    | {"subprocess.Popen", "pty.spawn", "os.kill", "os.killpg", "signal.pthread_kill"}
    | {"socket.connect", "socket.bind", "socket.sendto", "socket.sendmsg"}
    | {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
    | {"os.setxattr", "os.removexattr", "resource.setrlimit", "resource.prlimit", "sys.addaudithook"}
)
_PATH_EVENTS = {  # event -> positions of (path, dir_fd) among its arguments; -1: it has no dir_fd
    "os.remove": ((0, 1),),
    "os.rmdir": ((0, 1),),
    "os.mkdir": ((0, 2),),
    "os.chmod": ((0, 2),),
    "os.chown": ((0, 3),),
    "os.utime": ((0, 3),),
    "os.truncate": ((0, -1),),
    "os.rename": ((0, 2), (1, 3)),
    "os.link": ((0, 2), (1, 3)),
    "os.symlink": ((1, 2),),
    "os.mkfifo": ((0, 1),),
    "os.mknod": ((0, 2),),
}


def add_fence(directory: str) -> None:
    """Refuse from now on what a program has no business doing."""
    sys.addaudithook(_fence(directory))


def _fence(directory: str) -> Any:
    """The audit hook: raises PermissionError on what foreign code has no business doing."""
    root = os.path.realpath(directory)
    realpath, readlink, join, fsdecode = os.path.realpath, os.readlink, os.path.join, os.fsdecode
    path_events, refused, own_pid = _PATH_EVENTS, _REFUSED, os.getpid()

    def inside(path: Any, dir_fd: Any) -> bool:
        if isinstance(path, int) or path is None:  # a descriptor that is already open
            return True
        path = fsdecode(path)
        if isinstance(dir_fd, int) and dir_fd >= 0:
            path = join(readlink(f"/proc/self/fd/{dir_fd}"), path)
        path = realpath(path)
        return path == root or path.startswith(root + os.sep) or path in ("/dev/null", "/dev/stdout", "/dev/stderr")

    def hook(event: str, args: Any) -> None:
        if event in refused:
            if event in ("os.kill", "os.killpg") and args[0] == own_pid:
                return
            raise PermissionError(f"{event} is not allowed in the sandbox")
        if event == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & _WRITE_FLAGS and not inside(path, None):
                raise PermissionError(f"writing to {path!r} is not allowed in the sandbox")
        elif event in path_events:
            for at, fd_at in path_events[event]:
                dir_fd = args[fd_at] if 0 <= fd_at < len(args) else None
                if not inside(args[at], dir_fd):
                    raise PermissionError(f"{event} of {args[at]!r} is not allowed in the sandbox")
        elif event == "ctypes.dlopen" and args[0] is not None:
            raise PermissionError("loading libraries with ctypes is not allowed in the sandbox")

    return hook

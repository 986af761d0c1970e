"""The inside of the sandbox: read a job, fence this process in, run the code, report on each test.

Run by `code_execution.py` as a script in a fresh isolated interpreter, so it imports the standard library only. The
job lies in `job.json` of the working directory and is removed before foreign code runs. Reports are JSON lines on a
pipe of their own; each carries the job's nonce, so that printing cannot pass for a report.

The fences, from the kernel outwards: resource limits; a user and network namespace where the kernel permits one; an
audit hook that refuses to start processes, to signal others, to open connections, to load libraries, and to write
outside of the working directory. They keep accidents and ordinary mischief in. They are no wall against code that
attacks the interpreter itself.
"""

import contextlib
import json
import os
import resource
import signal
import sys
import types
from typing import Any

_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_WRITE_FLAGS = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_THREADS = 64

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


def main() -> None:
    """Run the job in this directory; the report pipe is the first argument."""
    with open("job.json", encoding="utf-8") as file:
        job = json.load(file)
    os.remove("job.json")
    report = _Reporter(int(sys.argv[1]), job["nonce"])
    fences = _limit_resources(job)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, job["seconds"] + 5.0)  # should the parent be gone by then
    sys.argv = ["solution.py"]
    sys.addaudithook(_fence(os.getcwd()))
    report(event="started", fences=fences)
    code, tests = job["code"], job["tests"]
    del job
    _run(code, tests, report)


def _run(code: str, tests: list[str], report: "_Reporter") -> None:
    module = types.ModuleType("solution" if tests else "__main__")
    sys.modules[module.__name__] = module  # dataclasses, pickle and typing look their module up
    space = vars(module)
    try:
        exec(compile(code, "solution.py", "exec", dont_inherit=True), space)
    except SystemExit as error:
        if not tests and error.code not in (None, 0):
            report(event="failed", error=f"exit code {error.code}")
            return
    except BaseException as error:
        report(event="failed", error=_line(error))
        return
    report(event="loaded")
    for index, test in enumerate(tests):
        try:
            exec(compile(test, f"test_{index}.py", "exec", dont_inherit=True), dict(space))
        except BaseException as error:
            report(event="test", index=index, ok=False, error=_line(error))
        else:
            report(event="test", index=index, ok=True)
    with contextlib.suppress(Exception):
        sys.stdout.flush()


class _Reporter:
    def __init__(self, descriptor: int, nonce: str) -> None:
        self._descriptor = descriptor
        self._nonce = nonce

    def __call__(self, **fields: Any) -> None:
        os.write(self._descriptor, json.dumps({"nonce": self._nonce, **fields}).encode("ascii") + b"\n")


def _line(error: BaseException) -> str:
    try:
        return f"{type(error).__name__}: {error}"[:300]
    except BaseException:
        return type(error).__name__


def _limit_resources(job: dict[str, Any]) -> list[str]:
    """Set limits and namespaces; the names of those that hold."""
    fences = []
    own_namespace = False
    with contextlib.suppress(Exception):
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        with contextlib.suppress(AttributeError):
            if libc.prctl(1, 9, 0, 0, 0) == 0:  # PR_SET_PDEATHSIG, SIGKILL
                fences.append("dies with its parent")
        with contextlib.suppress(AttributeError):
            if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0:
                own_namespace = True
                fences.append("no network")
    seconds = int(job["seconds"]) + 2
    limits = {
        "RLIMIT_CPU": seconds,
        "RLIMIT_AS": job["memory_bytes"],
        "RLIMIT_FSIZE": job["file_bytes"],
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
    }
    if own_namespace:  # else it counts everything that this user runs on the machine
        limits["RLIMIT_NPROC"] = _THREADS
    for name, value in limits.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (value, value))
            fences.append(name)
    return fences


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


if __name__ == "__main__":
    main()

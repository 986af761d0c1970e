"""The system calls that a program behind the wall cannot make, as a filter for `bwrap --seccomp`.

New namespaces, mounts, tracing, kernel keys, BPF, io_uring, memory that no limit counts, and sockets of other kinds
than AF_UNIX and AF_INET (AF_VSOCK reaches a hypervisor from any network namespace).
"""

from __future__ import annotations

import os
import platform
import struct

_ALLOW, _REFUSE, _UNKNOWN, _KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000  # EPERM, ENOSYS
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENT_AT = 0, 4, 16
_NEW_NAMESPACES = 0x7E020080
_SOCKET_FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6

# name -> (x86_64, aarch64); 425 and above are the same everywhere
_REFUSED = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "unshare": (272, 97),
    "setns": (308, 268),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "memfd_create": (319, 279),
    "memfd_secret": (447, 447),
    "shmget": (29, 194),
    "msgget": (68, 186),
    "semget": (64, 190),
    "open_by_handle_at": (304, 265),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "swapon": (167, 224),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
}
_CLONE, _SOCKET, _CLONE3 = (56, 220), (41, 198), (435, 435)
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}


def filter_program() -> bytes | None:
    """The filter for this machine's processor; None where its call numbers are not known here."""
    if platform.machine() not in _MACHINES:
        return None
    column, architecture = _MACHINES[platform.machine()]
    steps = [
        _step(_LOAD, _ARCH_AT),
        _step(_EQUAL, architecture, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER_AT),
    ]
    if column == 0:  # the x32 calls have a bit of their own
        steps += [_step(_AT_LEAST, 0x40000000, 0, 1), _step(_RETURN, _REFUSE)]
    for numbers in _REFUSED.values():
        steps += [_step(_EQUAL, numbers[column], 0, 1), _step(_RETURN, _REFUSE)]
    steps += [_step(_EQUAL, _CLONE3[column], 0, 1), _step(_RETURN, _UNKNOWN)]  # its flags are out of a filter's sight
    steps += [
        _step(_EQUAL, _CLONE[column], 0, 4),
        _step(_LOAD, _ARGUMENT_AT),
        _step(_ANY_BIT, _NEW_NAMESPACES & ~0xFF, 0, 1),
        _step(_RETURN, _REFUSE),
        _step(_RETURN, _ALLOW),
    ]
    steps += [_step(_EQUAL, _SOCKET[column], 0, len(_SOCKET_FAMILIES) + 2), _step(_LOAD, _ARGUMENT_AT)]
    for at, family in enumerate(_SOCKET_FAMILIES):
        steps.append(_step(_EQUAL, family, len(_SOCKET_FAMILIES) - at, 0))
    steps += [_step(_RETURN, _REFUSE), _step(_RETURN, _ALLOW)]
    return b"".join(steps)


def filter_pipe(program: bytes) -> int:
    """A descriptor from which bwrap reads the filter once."""
    out, into = os.pipe()
    os.write(into, program)
    os.close(into)
    return out


def _step(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, operand)

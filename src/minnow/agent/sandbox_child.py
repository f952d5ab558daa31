"""What runs a model's Python: started alone by :mod:`minnow.agent.sandbox`, it locks itself in and then obeys.

Linux on x86-64 only. What holds it are the kernel's own means, none of which it can take back: Landlock (it opens nothing but
Python's library and the system's, to read), seccomp (no new process, program or socket, no signal to others, no change of
owners and modes), no capabilities, and limits of CPU time, memory and open files. Nothing of Minnow is imported here.
"""

from __future__ import annotations

import ast
import ctypes
import os
import resource
import struct
import sys
import sysconfig
import time
import traceback

_READ = 1 << 2 | 1 << 3  # files, folders
_READABLE = (
    sysconfig.get_path("stdlib"),
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/usr/share/zoneinfo",
    "/etc/localtime",
)
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF, _CAPSET = 444, 445, 446, 126
_SET_NO_NEW_PRIVILEGES, _SET_SECCOMP = 38, 22
_CLONE, _CLONE3, _CLONE_THREAD = 56, 435, 0x10000
# fmt: off
_REFUSED = (
    41, 53,                                      # socket, socketpair
    57, 58, 59, 322,                             # fork, vfork, execve, execveat
    62, 200, 234, 129, 297, 424, 434, 438,       # kill, tkill, tgkill, sigqueue, pidfd_*
    101, 310, 311, 312, 440,                     # ptrace, process_vm_*, kcmp, process_madvise
    90, 91, 92, 93, 94, 260, 268, 452,           # chmod, chown and their kin
    132, 235, 261, 280, 188, 189, 190, 197, 198, 199, 463, 466,  # times, extended attributes
    29, 64, 68, 240, 248, 249, 250,              # shared memory, semaphores, queues, keys: they would outlive the process
    141, 142, 144, 160, 203, 302, 314,           # priorities, limits, affinity, scheduling
    272, 308, 298, 321, 323, 425, 426, 427,      # unshare, setns, perf_event_open, bpf, userfaultfd, io_uring
)
# fmt: on


def lock(seconds: int, megabytes: int) -> None:
    """Give up everything but computing.

    Raises:
        OSError: the kernel lacks one of the means.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long

    def must(result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    must(libc.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
    version = must(libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1))
    handled = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF}.get(version, 0xFFFF)
    rules = must(libc.syscall(_CREATE_RULESET, struct.pack("Q", handled), ctypes.c_size_t(8), 0))
    for path in _READABLE:
        if os.path.exists(path):
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
            allowed = _READ if os.path.isdir(path) else _READ & ~(1 << 3)
            must(libc.syscall(_ADD_RULE, rules, 1, struct.pack("=Qi", allowed, place), 0))
            os.close(place)
    must(libc.syscall(_RESTRICT_SELF, rules, 0))
    os.close(rules)
    must(libc.syscall(_CAPSET, struct.pack("Ii", 0x20080522, 0), bytes(24)))
    used = int(time.process_time()) + 1
    for limit, value in (
        (resource.RLIMIT_CPU, used + seconds),
        (resource.RLIMIT_AS, megabytes << 20),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    program = b"".join(_filter())
    code = ctypes.create_string_buffer(program, len(program))
    must(libc.prctl(_SET_SECCOMP, 2, struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(code)), 0, 0))


def _filter() -> list[bytes]:
    """The seccomp program: 64-bit calls only, none of those refused, clones that are threads."""

    def line(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    load, equal, above, bits, give = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, allow, not_permitted, no_such_call = 0x80000000, 0x7FFF0000, 0x00050001, 0x00050026
    lines = [line(load, 4), line(equal, 0xC000003E, 1), line(give, kill), line(load, 0), line(above, 0x40000000, 0, 1)]
    lines.append(line(give, kill))
    for number in _REFUSED:
        lines += [line(equal, number, 0, 1), line(give, not_permitted)]
    lines += [line(equal, _CLONE3, 0, 1), line(give, no_such_call)]
    lines += [line(equal, _CLONE, 0, 3), line(load, 16), line(bits, _CLONE_THREAD, 1), line(give, not_permitted)]
    return [*lines, line(give, allow)]


def run(source: str) -> None:
    """Run ``source``; the value of a last expression is printed, as at Python's prompt."""
    tree = ast.parse(source, "code")
    last = tree.body[-1] if tree.body else None
    if isinstance(last, ast.Expr):
        tree.body.pop()
    names = {"__name__": "__main__"}
    exec(compile(tree, "code", "exec"), names)  # noqa: S102  (this is what the process is for)
    if isinstance(last, ast.Expr):
        value = eval(compile(ast.Expression(last.value), "code", "eval"), names)
        if value is not None:
            print(repr(value))


def main() -> None:
    seconds, megabytes = map(int, sys.argv[1:])
    source = sys.stdin.buffer.read().decode("utf-8", "replace")
    try:
        lock(seconds, megabytes)
    except (OSError, ValueError, AttributeError) as error:
        print(f"no: {error}", flush=True)
        return
    print("locked", flush=True)
    try:
        run(source)
    except BaseException as error:  # noqa: BLE001  (whatever it is, the model reads it)
        # The lines of the model's own code, and what went wrong.
        places = [each.lineno for each in traceback.extract_tb(error.__traceback__) if each.filename == "code"]
        where = f" in line {places[-1]}" if places else ""
        if not (isinstance(error, SystemExit) and not error.code):
            sys.stdout.write(f"{type(error).__name__}{where}: {error}\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()

"""The program that shuts a generated program in: `python -I -S jail.py CONFIG`, the source on stdin. `sandbox` runs it.

It decides nothing: CONFIG (JSON) says the limits, and the descriptor to write "ready" to once all of it holds; what cannot be had
ends it before. Its child, in namespaces of its own (user, network, processes, mounts, IPC), is nobody where this process is root,
has no capability, no /proc and no environment, sees the interpreter and system libraries read-only, writes to a tmpfs of limited
size, may not fork or start a thread, and dies with this process.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

NOBODY = 65534
NEW_NAMESPACES = 0x10000000 | 0x40000000 | 0x20000000 | 0x00020000 | 0x08000000 | 0x04000000  # user, net, pid, mount, ipc, uts
BIND, RECURSIVE, PRIVATE, NOSUID, NODEV = 0x1000, 0x4000, 0x40000, 0x2, 0x4
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, ATTR_READ_ONLY, ATTR_NOSUID = 442, -100, 0x8000, 0x1, 0x2
SET_PDEATHSIG, SET_NO_NEW_PRIVS = 1, 38
SYSTEM = ("/usr", "/bin", "/lib", "/lib64", "/etc/ld.so.cache", "/dev/null", "/dev/urandom")
ROOT_BYTES = 2**20  # of mount points and links
RUN = """
import os, sys
word, source = sys.stdin.readline().strip(), sys.stdin.read()
exec(compile(source, "program.py", "exec"), {"__name__": "__main__"})
os.write(int(sys.argv[1]), word.encode())
"""
libc = ctypes.CDLL(None, use_errno=True)


def must(result: int, what: str) -> None:
    """Raise the OSError of a call of libc that failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    words = (None if word is None else word.encode() for word in (source, target, kind))
    must(libc.mount(*words, ctypes.c_ulong(flags), None if data is None else data.encode()), f"mount {target}")


def die_with_parent() -> None:
    """Be killed once the process that started this one is gone."""
    must(libc.prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")


def own_namespaces(ids: list[int], groups: list[int]) -> None:
    """Of the child that this is called in, where only these user and group ids exist."""
    told, tell = os.pipe()
    child, helper = os.getpid(), os.fork()
    if helper == 0:  # outside of them: whoever is inside could write one id only
        os.close(tell)
        if not os.read(told, 1):  # it could not enter them
            os._exit(1)
        if len(ids) == 1:
            write(f"/proc/{child}/setgroups", "deny")
        write(f"/proc/{child}/uid_map", "".join(f"{one} {one} 1\n" for one in ids))
        write(f"/proc/{child}/gid_map", "".join(f"{one} {one} 1\n" for one in groups))
        os._exit(0)
    must(libc.unshare(NEW_NAMESPACES), "unshare")
    os.write(tell, b"x")
    if os.waitpid(helper, 0)[1]:
        raise OSError("the user namespace got no ids")


def write(path: str, text: str) -> None:
    """One write, as these files want it."""
    with open(path, "w") as file:
        file.write(text)


def build_root(root: str, shown: list[str], num_bytes: int, *, user: int, group: int) -> None:
    """A root directory with `shown` read-only and an empty /work of `num_bytes` that is the user's; then enter it."""
    mount(None, "/", None, RECURSIVE | PRIVATE)
    mount("tmpfs", root, "tmpfs", NOSUID | NODEV, f"size={ROOT_BYTES},mode=755")
    for path in shown:
        show(path, root + path)
    os.makedirs(f"{root}/work")
    attributes = (ctypes.c_uint64 * 4)(ATTR_READ_ONLY | ATTR_NOSUID, 0, 0, 0)
    done = libc.syscall(MOUNT_SETATTR, AT_FDCWD, root.encode(), AT_RECURSIVE, attributes, ctypes.c_size_t(32))
    must(done, "mount_setattr")
    mount("tmpfs", f"{root}/work", "tmpfs", NOSUID | NODEV, f"size={num_bytes},mode=700,uid={user},gid={group}")
    os.chroot(root)
    os.chdir("/work")


def show(path: str, target: str) -> None:
    """The same link, or the file or directory itself, at `target`, unless it is there already."""
    if not os.path.lexists(path) or os.path.lexists(target):
        return
    os.makedirs(os.path.dirname(target), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), target)
        return
    if os.path.isdir(path):
        os.mkdir(target)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY))
    mount(path, target, None, BIND | RECURSIVE)


def limit(seconds: int, memory_bytes: int, file_bytes: int) -> None:
    """What the program may use; no process and no thread besides its own."""
    for what, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, file_bytes),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (most, most))


def become(user: int, group: int) -> None:
    """No other user than this one, which has no capability after the next exec."""
    if os.geteuid() != user:
        os.setgroups([])
        os.setresgid(group, group, group)
        os.setresuid(user, user, user)


def shut_in(config: dict[str, Any], user: int, group: int) -> None:
    """Everything else, in the first process of the namespaces; returns only by an error."""
    root, file_bytes, status = config["root"], config["file_bytes"], config["status"]
    build_root(root, [*SYSTEM, *config["shown"]], file_bytes, user=user, group=group)
    become(user, group)
    die_with_parent()  # a change of user forgets it
    must(libc.prctl(SET_NO_NEW_PRIVS, 1, 0, 0, 0), "prctl")
    limit(config["cpu_seconds"], config["memory_bytes"], file_bytes)
    os.write(status, b"ready\n")
    os.execve(sys.executable, ["python", "-I", "-S", "-B", "-c", RUN, str(status)], {})


def main() -> int:
    """The program's exit status."""
    config = json.loads(sys.argv[1])
    own, group = os.geteuid(), os.getegid()
    user, users = (own, [own]) if own else (NOBODY, [0, NOBODY])  # limits on processes do not hold for root
    group, groups = (group, [group]) if own else (NOBODY, [0, NOBODY])
    die_with_parent()
    try:
        own_namespaces(users, groups)
        child = os.fork()
        if child == 0:
            die_with_parent()
            shut_in(config, user, group)
    except OSError as error:
        os.write(2, f"{error}\n".encode())
        os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    code = main()
    os._exit(code if code >= 0 else 128 - code)

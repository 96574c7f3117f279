"""Jupyter kernels that strangers' code may run in.

A `Kernel` is a Python kernel inside bubblewrap (`bwrap`): it sees the system's
programs, this Python with its packages, and the package genlib, all read-only, and a
small scratch space of its own in memory. It has no network, no other process, no home
and no file of the course. It runs as a user of its own where we are root, else in a
user namespace. Memory, processor time, processes, file sizes and scratch space are
limited, and whoever asks it to run something says for how long.

We talk to it through sockets in its scratch space, which are reached by way of /proc:
nothing that it writes ever lies in a folder of ours.

`Kernel(limits, sandboxed=False)` is a plain kernel, for machines without bubblewrap:
then only the limits of time hold.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import zmq

import genlib

MEGABYTE = 1 << 20
START = 60  # s for a kernel to be ready
MESSAGE = 16 * MEGABYTE  # a longer message is not read
TEXT = 20_000  # characters of output that are kept of a cell
PICTURES = 4  # of a cell that are kept
PICTURE = 300_000  # characters of one, as base64
SOCKETS = "/run/kernel"
SLICE = 0.1  # s between looks at the kernel's health
ENVIRONMENT = {
    "CUDA_VISIBLE_DEVICES": "",
    "GENLIB_DEVICE": "cpu",
    "GENLIB_PROFILE": "cpu",
    "HOME": "/tmp/home",
    "LANG": "C.UTF-8",
    "MKL_NUM_THREADS": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "MPLCONFIGDIR": "/tmp/matplotlib",
    "OMP_NUM_THREADS": "1",
    "PATH": "/usr/bin:/bin",
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "0",
    "TQDM_DISABLE": "1",
    "USER": "student",
}


class SandboxError(Exception):
    """No kernel can be had, with the reason in one line."""


@dataclass(frozen=True)
class Limits:
    """What one submission may use."""

    cell: float = 60  # s of wall clock, one cell
    total: float = 300  # s of wall clock, all of it
    memory: int = 4096  # MiB, of each process and of all together
    disk: int = 256  # MiB of scratch space
    processes: int = 128  # threads count too


@dataclass
class Reply:
    """How the execution of one cell ended.

    status: "ok", "error" (it raised), "timeout" (it was interrupted), "died" (the
    kernel is gone, by its own doing or because it could not be interrupted or had
    taken too much memory) or "lost" (its answer never came: too long, or damaged).
    """

    status: str
    name: str = ""  # of the exception
    text: str = ""  # its message
    values: dict = field(default_factory=dict)  # expression's name -> repr of its value
    outputs: list = field(default_factory=list)  # nbformat outputs, cut where too long


# --- the walls ------------------------------------------------------------------------


def parents(paths):
    """The folders above `paths`, each once, outer first; not / itself."""
    found = {p: None for path in paths for p in reversed(path.parents)}
    return [p for p in found if p != Path("/")]


def bwrap(limits, connection, info, fonts=None):
    """The command that starts a program in the sandbox, up to that program.

    connection, info: descriptors, of a pipe that holds the connection file and of one
    that bubblewrap writes the sandbox's process to. fonts: matplotlib's list of fonts.
    """
    root = os.geteuid() == 0
    scratch = str(limits.disk * MEGABYTE)
    command = ["bwrap", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    if root:  # becomes a plain user inside, by setpriv below
        for right in ("SETUID", "SETGID", "SETPCAP"):
            command += ["--cap-add", f"CAP_{right}"]
    else:
        command += ["--unshare-user", "--disable-userns"]
    command += ["--info-fd", str(info)]
    library = Path(genlib.__file__).resolve().parent
    for name, value in (ENVIRONMENT | {"PYTHONPATH": str(library.parent)}).items():
        command += ["--setenv", name, value]
    command += ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            command += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            command += ["--ro-bind", str(path), str(path)]
    for path in ("/etc/ld.so.cache", "/etc/alternatives", "/etc/fonts"):
        command += ["--ro-bind-try", path, path]
    command += ["--proc", "/proc", "--dev", "/dev", "--size", scratch]
    command += ["--tmpfs", "/dev/shm", "--perms", "1777", "--size", scratch]
    command += ["--tmpfs", "/tmp", "--perms", "1777", "--size", str(MEGABYTE)]
    command += ["--tmpfs", SOCKETS]
    python = [Path(p).resolve() for p in (sys.prefix, sys.base_prefix)]
    shown = [p for p in (*python, library) if not p.is_relative_to("/usr")]
    for folder in parents(shown):  # others' rights there do not count
        if folder != Path("/tmp"):
            command += ["--perms", "0755", "--dir", str(folder)]
    for folder in shown:
        command += ["--ro-bind", str(folder), str(folder)]
    if fonts:
        inside = f"{ENVIRONMENT['MPLCONFIGDIR']}/{fonts.name}"
        command += ["--perms", "1777", "--dir", ENVIRONMENT["MPLCONFIGDIR"]]
        command += ["--ro-bind", str(fonts), inside]
    command += ["--perms", "0444", "--ro-bind-data", str(connection)]
    command += [f"{SOCKETS}.json", "--remount-ro", "/", "--chdir", "/tmp"]
    if root:
        user = str(1_000_000 + os.getpid())  # the limit on processes counts by user
        command += ["setpriv", "--reuid", user, "--regid", user, "--clear-groups"]
        command += ["--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"]
    command += ["prlimit", f"--as={limits.memory * MEGABYTE}", "--core=0"]
    command += [f"--cpu={int(limits.total)}", f"--nproc={limits.processes}"]
    command += [f"--fsize={scratch}", "--nofile=1024", "--"]
    return command


def inner_python():
    """This Python, by a path that exists inside."""
    return str(Path(sys.prefix).resolve() / "bin" / "python")


def font_list():
    """matplotlib's list of fonts, written once: making it takes a kernel seconds."""
    import matplotlib
    import matplotlib.font_manager as manager

    version = manager.FontManager.__version__
    path = Path(matplotlib.get_cachedir(), f"fontlist-v{version}.json")
    return path if path.is_file() else None


def check_sandbox(limits=Limits()):
    """Try the sandbox once; SandboxError if this machine has none."""
    for program in ("bwrap", "prlimit", "setpriv"):
        if not shutil.which(program):
            raise SandboxError(
                f"no {program} here, so nothing can keep a submission from the rest of "
                "this machine (Debian, Ubuntu: apt install bubblewrap). --no-sandbox "
                "grades all the same, for submissions that you trust"
            )
    code = "import genlib, ipykernel"
    empty, write = os.pipe()
    os.close(write)
    with contextlib.closing(os.fdopen(empty)), open(os.devnull, "w") as info:
        files = [empty, info.fileno()]
        done = subprocess.run(
            [*bwrap(limits, *files), inner_python(), "-c", code],
            pass_fds=files,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise SandboxError(
            f"the sandbox does not start: {why}. --no-sandbox grades without, for "
            "submissions that you trust"
        )


# --- a kernel -------------------------------------------------------------------------


class Kernel:
    """A kernel that runs one cell after another. A context manager; SandboxError.

    >>> with Kernel(Limits()) as kernel:
    ...     kernel.run("1 / 0", timeout=5).name
    'ZeroDivisionError'
    """

    def __init__(self, limits, sandboxed=True, fonts=None):
        self.limits, self.sandboxed = limits, sandboxed
        self.key = uuid.uuid4().hex
        self.folder = None
        self.client = self.context = None
        self.process = self.inner = None
        try:
            self.start(fonts)
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def connection(self, where):
        """What a connection file says, with the sockets in the folder `where`."""
        ports = {f"{n}_port": i for i, n in enumerate(CHANNELS, 1)}
        return ports | {
            "transport": "ipc",
            "ip": f"{where}/s",
            "key": self.key,
            "signature_scheme": "hmac-sha256",
        }

    def start(self, fonts):
        from jupyter_client import BlockingKernelClient

        program = ["-m", "ipykernel_launcher", "-f"]
        quiet = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.DEVNULL,
            "stderr": subprocess.DEVNULL,
        }
        if self.sandboxed:
            program += [f"{SOCKETS}.json", "--HistoryManager.enabled=False"]
            sockets = self.start_inside(program, fonts, quiet)
        else:
            self.folder = sockets = tempfile.mkdtemp(prefix="kernel-", dir="/tmp")
            path = Path(sockets, "connection.json")
            path.write_text(json.dumps(self.connection(sockets)))
            self.process = subprocess.Popen(
                [sys.executable, *program, path, "--HistoryManager.enabled=False"],
                env=os.environ | {"MPLBACKEND": ENVIRONMENT["MPLBACKEND"]},
                cwd=sockets,
                start_new_session=True,
                **quiet,
            )
            self.inner = psutil.Process(self.process.pid)
            end = time.monotonic() + START
            while not listening(sockets) and self.alive() and time.monotonic() < end:
                time.sleep(0.02)
        self.context = zmq.Context()
        self.context.setsockopt(zmq.MAXMSGSIZE, MESSAGE)
        # its folder is the student's by then: a path could lead anywhere
        self.context.setsockopt(zmq.RECONNECT_IVL, -1)
        self.client = BlockingKernelClient(context=self.context)
        self.client.load_connection_info(self.connection(sockets))
        self.client.start_channels(hb=False, stdin=False)
        try:
            self.client.wait_for_ready(timeout=START)
        except RuntimeError as error:
            raise SandboxError(f"the kernel did not answer: {error}") from None

    def start_inside(self, program, fonts, quiet):
        """Start the kernel in its sandbox; the path here of its sockets' folder."""
        ends = [*os.pipe(), *os.pipe()]
        read_info, write_info, read_connection, write_connection = ends
        try:
            os.write(write_connection, json.dumps(self.connection(SOCKETS)).encode())
            os.close(ends.pop())
            command = bwrap(self.limits, read_connection, write_info, fonts)
            self.process = subprocess.Popen(
                [*command, inner_python(), *program],
                pass_fds=[read_connection, write_info],
                **quiet,
            )
            os.close(ends.pop(1))
            with os.fdopen(ends.pop(0)) as file:
                said = file.read()
        finally:
            for end in ends:
                os.close(end)
        if not said:
            raise SandboxError("the sandbox does not start")
        outer = psutil.Process(json.loads(said)["child-pid"])
        end = time.monotonic() + START
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(OSError, psutil.Error, IndexError):
                self.inner = outer.children()[0]
                sockets = f"/proc/{self.inner.pid}/root{SOCKETS}"
                if listening(sockets):
                    return sockets
            time.sleep(0.02)
        raise SandboxError("the kernel in the sandbox does not start")

    def alive(self):
        return self.process is not None and self.process.poll() is None

    def family(self):
        """The kernel's process and all that came of it."""
        try:
            # in the sandbox, orphans become children of its first process
            head = self.inner.parent() if self.sandboxed else self.inner
            return [self.inner, *(head.children(recursive=True) if head else ())]
        except psutil.Error:
            return []

    def too_big(self):
        """Whether all its processes together hold more memory than they may."""
        held = 0
        for process in set(self.family()):
            with contextlib.suppress(psutil.Error):
                held += process.memory_info().rss
        return held > self.limits.memory * MEGABYTE

    def kill(self):
        """End it and all that it started."""
        if not self.process:
            return
        family = [] if self.sandboxed else self.family()
        # the sandbox dies with bwrap, and every process in it with the sandbox
        self.process.kill()
        for process in family:
            with contextlib.suppress(psutil.Error):
                process.kill()
        self.process.wait()

    def close(self):
        self.kill()
        if self.client:
            self.client.stop_channels()
        if self.context:
            self.context.destroy(linger=0)
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)

    # --- running cells ---

    def run(self, code, timeout, expressions=None):
        """Execute `code` and evaluate `expressions` (name -> source) after it.

        timeout: s; then it is interrupted, and killed 5 s later if it goes on.
        """
        if not self.alive():
            return Reply("died")
        try:
            content = {
                "code": code,
                "silent": False,
                "store_history": False,
                "user_expressions": expressions or {},
                "allow_stdin": False,
                "stop_on_error": False,
            }
            request = self.client.session.msg("execute_request", content)
            self.client.shell_channel.send(request)
            return self.follow(request["header"]["msg_id"], timeout)
        except Exception as error:  # whatever a kernel may send: it cannot be trusted
            self.kill()
            return Reply("lost", text=type(error).__name__)

    def follow(self, request, timeout):
        """Read messages until the cell has ended, or must be ended."""
        shell, iopub = self.client.shell_channel, self.client.iopub_channel
        poller = zmq.Poller()
        for channel in (shell, iopub):
            poller.register(channel.socket, zmq.POLLIN)
        reply, answer, idle, outputs = None, None, False, Outputs()
        end = time.monotonic() + timeout
        look, late = 0.0, None  # when to look at it next; when to wait no longer
        while not (answer and idle):
            now = time.monotonic()
            if not self.alive() or not self.inner.is_running():
                reply = reply or Reply("died")
                break
            if now > look:
                look = now + 5 * SLICE
                if self.too_big():
                    self.kill()
                    reply = Reply("died", text="it took too much memory")
                    break
            if late and now > late:
                if not answer:
                    self.kill()
                    reply = reply or Reply("lost")
                    if reply.status == "timeout":
                        reply = Reply("died", text="it could not be interrupted")
                break
            if not reply and not answer and now > end:
                reply, late = Reply("timeout"), now + 5
                self.interrupt()
            ready = dict(poller.poll(1000 * SLICE))
            if shell.socket in ready:
                message = read(shell)
                if mine(message, request, "execute_reply"):
                    answer = message["content"]
                    late = late or now + 2
            if iopub.socket in ready:
                message = read(iopub)
                if mine(message, request):
                    outputs.add(message)
                    if message["content"].get("execution_state") == "idle":
                        idle, late = True, late or now + 5
        if reply is None:
            reply = Reply(
                "ok" if answer.get("status") == "ok" else "error",
                str(answer.get("ename", "")),
                str(answer.get("evalue", "")),
                {
                    str(name): value["data"]["text/plain"]
                    for name, value in (answer.get("user_expressions") or {}).items()
                    if value.get("status") == "ok"
                },
            )
        reply.outputs = outputs.kept
        return reply

    def interrupt(self):
        with contextlib.suppress(psutil.Error):
            self.inner.send_signal(signal.SIGINT)


CHANNELS = ("shell", "iopub", "stdin", "control", "hb")


def listening(folder):
    """Whether all of a kernel's sockets in a folder can be connected to."""
    for number in range(1, len(CHANNELS) + 1):
        with socket.socket(socket.AF_UNIX) as trial:
            try:
                trial.connect(f"{folder}/s-{number}")
            except OSError:
                return False
    return True


def read(channel):
    """The next message, or None where it is none or not signed."""
    try:
        return channel.get_msg(timeout=0)
    except Exception:
        return None


def mine(message, request, kind=None):
    return (
        message is not None
        and message["parent_header"].get("msg_id") == request
        and kind in (None, message["msg_type"])
    )


class Outputs:
    """The outputs of a cell, for a person to look at: text and pictures, cut."""

    def __init__(self):
        self.kept, self.room, self.pictures = [], TEXT, PICTURES

    def add(self, message):
        kind, content = message["msg_type"], message["content"]
        if kind == "stream":
            self.add_text(str(content.get("text", "")))
        elif kind in ("execute_result", "display_data"):
            data = content.get("data", {})
            picture = data.get("image/png")
            if isinstance(picture, str) and len(picture) < PICTURE and self.pictures:
                self.pictures -= 1
                data = {"image/png": picture}
                self.kept.append(
                    {"output_type": "display_data", "data": data, "metadata": {}}
                )
            else:
                self.add_text(str(data.get("text/plain", "")) + "\n")
        elif kind == "error":
            self.add_text(f"{content.get('ename')}: {content.get('evalue')}\n")

    def add_text(self, text):
        if self.room <= 0:
            return
        if len(text) > self.room:
            text = text[: self.room] + "\n[cut]\n"
        self.room -= len(text)
        if self.kept and self.kept[-1]["output_type"] == "stream":
            self.kept[-1]["text"] += text
        else:
            self.kept.append({"output_type": "stream", "name": "stdout", "text": text})

"""What works on this machine and what is missing, each with the command that mends it.

Each check is a function that returns one `Finding`. What may take its process down (drivers, compilers) runs in one
of its own, with a time limit; what a check does not foresee becomes a problem, never a crash.
"""

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, TextIO

WIDTH = 96
COMPILE_SECONDS = 60
RENDER_SECONDS = 30
GIGABYTE = 1e9
# What `envs` chooses from on Linux, in its order, with the Debian packages that bring it.
RENDERERS = {"egl": ("libegl1", "libgl1-mesa-dri"), "osmesa": ("libosmesa6",)}
DISTRIBUTIONS = {"PIL": "pillow", "ale_py": "ale-py", "dm_control": "dm-control"}  # where the module's name differs

COMPILE = """
import torch
inputs = torch.ones(8, device="{device}")
def function(x):
    return torch.sin(x) * 2 + 1
try:
    assert torch.allclose(torch.compile(function)(inputs), function(inputs)), "the compiled function is wrong"
except Exception as error:
    print((str(error).strip() or type(error).__name__).splitlines()[0])
    raise SystemExit(1)
"""
# Prints the milliseconds of a second frame; the first one sets everything up.
RENDER = """
import time
from dm_control import mujoco
physics = mujoco.Physics.from_xml_string(
    "<mujoco><worldbody><light pos='0 0 3'/><geom size='.3' rgba='1 0 0 1'/>"
    "<camera pos='0 -2 0' xyaxes='1 0 0 0 0 1'/></worldbody></mujoco>"
)
physics.render(64, 64, camera_id=0)
start = time.perf_counter()
frame = physics.render(64, 64, camera_id=0)
seconds = time.perf_counter() - start
physics.free()
assert frame.std() > 0, "the frame is empty"
print(f"{1000 * seconds:.1f}")
"""


class Finding(NamedTuple):
    """What a check found: ok; warning, where training works all the same; problem, where something does not.

    remedy: the command that mends it, if there is one.
    """

    name: str
    state: Literal["ok", "warning", "problem"]
    text: str
    remedy: str = ""


class Check(NamedTuple):
    """A check under its name, and what to say while it runs if that takes long."""

    name: str
    run: Callable[[], Finding]
    meanwhile: str = ""


class Outcome(NamedTuple):
    """Of a program that was run: whether it succeeded, and its last line."""

    good: bool
    line: str


def checks(environments: Callable[[], ModuleType], runs: Path) -> list[Check]:
    """All of them, in the order of the report.

    Args:
        environments: imports the package `envs`; called by the checks that need it.
        runs: where runs go.
    """
    backends, chosen = renderers(), os.environ.get("MUJOCO_GL")
    # dm_control, once imported, leaves variables behind that would decide for every renderer.
    drawn = functools.cache(functools.partial(draw, variables=dict(os.environ)))
    return [
        Check("Python", check_python),
        Check("packages", check_packages),
        Check("torch", check_torch, "Importing torch"),
        Check("device", check_device),
        Check("compiler", check_compiler, f"Compiling a small function, at most {COMPILE_SECONDS} seconds"),
        Check("precision", check_precision, "Timing matrix products"),
        Check("ALE", lambda: check_ale(environments()), "Playing a frame of an Atari game"),
        Check("dm_control", lambda: check_dm_control(environments(), chosen), "Stepping a task of dm_control"),
        *(
            Check(
                f"render {backend}",
                functools.partial(check_renderer, backend, backends, chosen, drawn),
                f"Drawing a frame with {backend}, at most {RENDER_SECONDS} seconds",
            )
            for backend in backends
        ),
        Check("memory", check_memory),
        Check("disk", lambda: check_disk(runs)),
        Check("writing", lambda: check_writing(runs)),
    ]


def run(check: Check) -> Finding:
    """The check's finding; where it fails in a way that it does not foresee, that."""
    try:
        return check.run()
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        distribution = DISTRIBUTIONS.get(missing, missing)
        if missing == "torch" and check.name != "torch":
            return Finding(check.name, "warning", "not tried, since torch is missing")
        return Finding(check.name, "problem", f"the package {missing} is missing", _mend(distribution))
    except Exception as error:
        return Finding(check.name, "problem", f"{type(error).__name__}: {_first_line(str(error))}")


def report(finding: Finding) -> str:
    """A line, or several where it would be too long; the remedy on one of its own, to be copied."""
    first = f"{finding.state:<8} {finding.name:<14} "
    text = textwrap.fill(
        finding.text,
        WIDTH,
        initial_indent=first,
        subsequent_indent=" " * len(first),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return f"{text}\n{' ' * len(first)}-> {finding.remedy}" if finding.remedy else text


def conclusion(findings: list[Finding]) -> str:
    problems = [finding.name for finding in findings if finding.state == "problem"]
    if not problems:
        return "Everything needed to train works."
    return (
        f"{len(problems)} problem{'s' if len(problems) > 1 else ''}: {', '.join(problems)}. "
        "Commands that mend them follow the arrows (->)."
    )


@contextmanager
def saying(text: str, stream: TextIO) -> Iterator[None]:
    """Says what is happening; in a terminal on a line that goes away afterwards."""
    if not text:
        yield
        return
    live = stream.isatty()
    stream.write(f"{text} ..." + ("" if live else "\n"))
    stream.flush()
    try:
        yield
    finally:
        if live:
            stream.write("\r" + " " * (len(text) + 4) + "\r")
            stream.flush()


def check_python() -> Finding:
    needed = ""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        needed = importlib.metadata.metadata("dreamer")["Requires-Python"] or ""
    text = f"{platform.python_version()}, {sys.executable}"
    if _fits(platform.python_version(), needed):
        return Finding("Python", "ok", text)
    return Finding("Python", "problem", f"{text}; {needed} is needed", debian("python" + needed.removeprefix(">=")))


def check_packages() -> Finding:
    """Whether everything is installed that this package asks for, in a version that it can use."""
    wrong, commands = [], []
    requirements = _requirements()
    if not requirements:
        return Finding(
            "packages", "warning", "dreamer itself is not installed, so nothing tells what it needs", "pip install ."
        )
    for name, versions in requirements.items():
        installed = _version(name)
        if installed is None:
            wrong.append(f"{name} is missing")
        elif not _fits(installed, versions):
            wrong.append(f"{name} is {installed}, {versions} is needed")
        else:
            continue
        commands.append(name + versions)
    if wrong:
        return Finding("packages", "problem", "; ".join(wrong), pip_install(*commands))
    return Finding("packages", "ok", f"all {len(requirements)} are here, in versions that fit")


def check_torch() -> Finding:
    import torch

    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return Finding("torch", "ok", f"{torch.__version__}, built {built}, {torch.get_num_threads()} threads")


def check_device() -> Finding:
    import torch

    from .machine import choose_device

    device = choose_device("auto")
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        memory = f"{free / GIGABYTE:.1f} of {total / GIGABYTE:.1f} GB free"
        return Finding("device", "ok", f"cuda, {torch.cuda.get_device_name()}, {memory}")
    if shutil.which("nvidia-smi") is None:
        return Finding("device", "warning", "cpu: no GPU here; training works, with smaller models and more slowly")
    if torch.version.cuda:
        return Finding("device", "warning", "cpu: there is an NVIDIA driver, but torch finds no GPU", "nvidia-smi")
    # The builds of PyPI have CUDA, except those for Windows.
    index = ("--index-url", "https://download.pytorch.org/whl/cu126") if sys.platform == "win32" else ()
    return Finding(
        "device",
        "warning",
        "cpu: there is an NVIDIA driver, but this torch is built without CUDA",
        pip_install("--force-reinstall", f"torch=={torch.__version__.partition('+')[0]}", *index),
    )


def check_compiler() -> Finding:
    """By really compiling, since a compiler that is there may lack its headers or its linker."""
    from .machine import choose_device, why_not_compile

    device = choose_device("auto")
    slower = "everything works without, more slowly"
    remedy = debian("g++", "python3-dev")
    if reason := why_not_compile(device):
        return Finding("compiler", "warning", f"{reason.partition(' (')[0]}; {slower}", remedy)
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as cache:
        outcome = run_python(
            COMPILE.format(device=device.type),
            COMPILE_SECONDS,
            {
                **os.environ,
                "TORCHINDUCTOR_CACHE_DIR": cache,
                "TRITON_CACHE_DIR": str(Path(cache, "triton")),
                "TORCHINDUCTOR_COMPILE_THREADS": "1",
            },
        )
    if outcome is None:
        text = f"a small function was not compiled within {COMPILE_SECONDS} seconds; is the machine busy?"
        return Finding("compiler", "warning", f"{text} {slower.capitalize()}", "dreamer doctor")
    if not outcome.good:
        return Finding("compiler", "warning", f"torch.compile fails: {outcome.line}; {slower}", remedy)
    return Finding("compiler", "ok", f"torch.compile works, {time.monotonic() - start:.0f} s for a small function")


def check_precision() -> Finding:
    """Which precision a run takes here, and whether that is the faster one."""
    import torch

    from .machine import choose_device, choose_dtype

    device = choose_device("auto")
    speed = time_products(device, torch.float32) / time_products(device, torch.bfloat16)
    if choose_dtype("auto", device) is torch.float32:
        return Finding(
            "precision", "ok", f"float32; matrix products in bfloat16 run at {speed:.2g} times its speed here"
        )
    text = f"bfloat16; its matrix products run at {speed:.2g} times the speed of float32"
    if speed < 1:
        return Finding("precision", "warning", text, "dreamer train --set run.precision=float32")
    return Finding("precision", "ok", text)


def time_products(device: Any, dtype: Any) -> float:
    """Seconds of a product of two square matrices, on one thread of a CPU."""
    import torch

    from .machine import product_seconds

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # whose speed another program's threads disturb the least
    try:
        return product_seconds(512 if device.type == "cpu" else 4096, device, dtype)
    finally:
        torch.set_num_threads(threads)


def check_ale(package: Any) -> Finding:
    try:
        games = package.suites()["atari"].names()
        if not games:
            return Finding("ALE", "problem", "ale_py has no games", _mend("ale-py"))
        game = "pong" if "pong" in games else games[0]
        _step(package, f"atari/{game}", repeat=1)
    except package.TaskError as error:
        return Finding("ALE", "problem", _without_remedy(error), _mend("ale-py"))
    return Finding("ALE", "ok", f"ale_py {_version('ale-py')}, {len(games)} games; played a frame of {game}")


def check_dm_control(package: Any, chosen: str | None) -> Finding:
    """chosen: the user's MUJOCO_GL. `envs` sets it where it is not set."""
    install = _mend("dm-control", "mujoco")
    try:
        tasks = package.suites()["dmc"].names()
        _step(package, "dmc/cartpole_swingup")
    except package.TaskError as error:
        remedy = "unset MUJOCO_GL" if chosen is not None and "MUJOCO_GL" in str(error) else install
        return Finding("dm_control", "problem", _without_remedy(error), remedy)
    except Exception as error:  # what dm_control makes of a MuJoCo that it does not know
        return Finding("dm_control", "problem", f"{type(error).__name__}: {_first_line(str(error))}", install)
    versions = f"dm_control {_version('dm-control')} on mujoco {_version('mujoco')}"
    return Finding("dm_control", "ok", f"{versions}, {len(tasks)} tasks; stepped cartpole_swingup")


def _step(package: Any, task: str, **options: Any) -> None:
    env = package.make(task, seed=0, **options)
    try:
        env.reset()
        env.step(env.action_space.sample())
    finally:
        env.close()


def renderers() -> list[str]:
    """The values of MUJOCO_GL to try; beside those that `envs` chooses from, what needs a display, and the user's."""
    if sys.platform != "linux":
        return [os.environ.get("MUJOCO_GL", "glfw")]  # drawn by the system, without anything to choose or install
    names = [*RENDERERS, *(["glfw"] if os.environ.get("DISPLAY") else [])]
    chosen = os.environ.get("MUJOCO_GL")
    return names if chosen is None or chosen in names else [*names, chosen]


def draw(backend: str, variables: Mapping[str, str]) -> Outcome | None:
    """Draw with `backend` in a process of its own, under these variables of the environment."""
    return run_python(RENDER, RENDER_SECONDS, {**variables, "MUJOCO_GL": backend})


def check_renderer(
    backend: str, backends: list[str], chosen: str | None, drawn: Callable[[str], Outcome | None]
) -> Finding:
    """A frame drawn by `backend`.

    Args:
        backends: all that are tried.
        chosen: the user's MUJOCO_GL; if there is none, the first of `RENDERERS` that works is used.
        drawn: the outcome of drawing with a backend; None where that took too long.
    """
    name, outcome = f"render {backend}", drawn(backend)
    automatic = [other for other in backends if other in RENDERERS or sys.platform != "linux"]
    candidates = automatic if chosen is None else [chosen, *automatic]
    working = next((other for other in candidates if _drew(drawn(other))), None)
    if outcome is not None and outcome.good:
        used = backend == working and chosen in (None, backend)
        return Finding(name, "ok", f"a frame of 64x64 in {outcome.line} ms" + (", used for cameras" if used else ""))
    if outcome is not None and outcome.line.startswith("ModuleNotFoundError"):
        return Finding(name, "warning", "not tried, since dm_control cannot be imported")
    reason = f"no frame: {_why(outcome.line)}" if outcome else f"no frame within {RENDER_SECONDS} seconds"
    remedy = debian(*RENDERERS[backend]) if backend in RENDERERS else ""
    if backend == chosen:
        text = f"the variable MUJOCO_GL asks for it, but {reason}"
        return Finding(name, "problem", text, "unset MUJOCO_GL" if working or not remedy else remedy)
    if working is not None:
        return Finding(name, "warning", f"not needed, since {working} works; {reason}", remedy)
    if backend in automatic:
        return Finding(name, "problem", f"{reason}; cameras need {' or '.join(automatic)}", remedy)
    return Finding(name, "warning", reason)


def _drew(outcome: Outcome | None) -> bool:
    return outcome is not None and outcome.good


def _why(line: str) -> str:
    # What PyOpenGL says of a library that it did not find.
    return "its library is missing" if "'NoneType' object has no attribute" in line else line.rstrip(".")


def check_memory() -> Finding:
    from .machine import total_memory

    total, free = total_memory(), available_memory()
    share = f"a replay may take half, {total / 2 / GIGABYTE:.1f} GB"
    if free is None:
        return Finding("memory", "ok", f"{total / GIGABYTE:.1f} GB in all; {share}")
    free = min(free, total)
    text = f"{free / GIGABYTE:.1f} of {total / GIGABYTE:.1f} GB free; {share}"
    if free < GIGABYTE:
        return Finding("memory", "problem", f"{text}; close other programs")
    if free < total / 2:
        return Finding("memory", "warning", text, "dreamer train --set replay.capacity=100000")
    return Finding("memory", "ok", text)


def available_memory() -> int | None:
    """Bytes that this process can still get, or None where the system does not tell."""
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        found.append(int(Path("/proc/meminfo").read_text().partition("MemAvailable:")[2].split()[0]) * 1024)
    with contextlib.suppress(OSError, ValueError):
        container = Path("/sys/fs/cgroup")
        limit, used = (int((container / name).read_text()) for name in ("memory.max", "memory.current"))
        cached = re.search(r"^inactive_file (\d+)", (container / "memory.stat").read_text(), re.MULTILINE)
        found.append(limit - used + (int(cached[1]) if cached else 0))
    return min(found, default=None)


def check_disk(runs: Path) -> Finding:
    folder = _existing(runs)
    usage = shutil.disk_usage(folder)
    text = f"{usage.free / GIGABYTE:.1f} of {usage.total / GIGABYTE:.1f} GB free for {_absolute(runs)}"
    with contextlib.suppress(ModuleNotFoundError):
        from .machine import total_memory

        replay = total_memory() / 2
        if GIGABYTE <= usage.free < replay:
            text += f"; a replay may take {replay / GIGABYTE:.1f} GB"
            return Finding("disk", "warning", text, "dreamer train --run FOLDER_ON_ANOTHER_DISK")
    if usage.free < GIGABYTE:
        return Finding("disk", "problem", text, "dreamer train --run FOLDER_ON_ANOTHER_DISK")
    return Finding("disk", "ok", text)


def check_writing(runs: Path) -> Finding:
    folder = _existing(runs)
    elsewhere = "dreamer train --run FOLDER_THAT_YOU_MAY_WRITE_TO"
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        return Finding("writing", "problem", f"{_absolute(folder)}: {error.strerror or error}", elsewhere)
    made = "" if folder == runs else f"; {runs}/ will be made there"
    return Finding("writing", "ok", f"{_absolute(folder)} can be written to{made}")


def _existing(folder: Path) -> Path:
    """`folder`, or the nearest one above it that exists, where it would be made."""
    return next((path for path in (folder, *folder.parents) if path.exists()), Path("."))


def _absolute(folder: Path) -> str:
    return str(folder.absolute())


def run_python(code: str, seconds: float, variables: Mapping[str, str]) -> Outcome | None:
    """Run a program in a process of its own, under these variables; None if it was not done in time."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env=dict(variables),
        start_new_session=True,  # so that the compiler that it starts can be ended with it
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            _end(process)
    lines = (output if output.strip() else errors).strip().splitlines()
    last = lines[-1] if lines else f"exit code {process.returncode}"
    return Outcome(process.returncode == 0, textwrap.shorten(last, 160, placeholder=" ..."))


def _end(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        if sys.platform == "win32":
            process.kill()
        else:
            os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def debian(*packages: str) -> str:
    """The command that installs packages of the system; elsewhere than on Debian, the nearest thing to it."""
    if sys.platform != "linux":
        return "xcode-select --install" if sys.platform == "darwin" and "g++" in packages else ""
    administrator = "" if os.geteuid() == 0 else "sudo "
    command = f"{administrator}apt-get install {' '.join(packages)}"
    return command if shutil.which("apt-get") else f"{command}  # or what your system calls these"


def pip_install(*arguments: str) -> str:
    """The command for this very Python, which a bare `pip` need not belong to."""
    pip = shutil.which("pip")
    own = pip is not None and Path(pip).parent == Path(sys.executable).parent
    return shlex.join([*(["pip"] if own else [sys.executable, "-m", "pip"]), "install", *arguments])


def _mend(*names: str) -> str:
    """The command that installs packages in versions that fit, or installs them again if that is not what is wrong."""
    needed = _requirements()
    versions = {name: _version(name) for name in names}
    fit = all(version is not None and _fits(version, needed.get(name, "")) for name, version in versions.items())
    alone = "dm-control" in names and _fits(platform.python_version(), ">=3.13")  # see setup.cfg
    options = ("--force-reinstall",) * fit + ("--no-deps",) * (fit or alone)
    return pip_install(*options, *(name + needed.get(name, "") for name in names))


def _requirements() -> dict[str, str]:
    """Versions needed of each package, `>=1.1` for example, without those that only tests or another Python need."""
    found = {}
    lines: list[str] = []
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        lines = importlib.metadata.requires("dreamer") or []
    for line in lines:
        requirement, _, condition = line.partition(";")
        name = re.match(r"[\w.-]+", requirement)
        if name and (not condition or _holds(condition)):
            found[name[0].lower().replace("_", "-")] = requirement[name.end() :].replace(" ", "")
    return found


def _holds(condition: str) -> bool:
    """Whether this Python's version is as `python_version < "3.13"` says; other conditions are those of the tests."""
    found = re.fullmatch(r"""\s*python_version\s*(<|>=)\s*["']([\d.]+)["']\s*""", condition)
    return found is not None and _fits(platform.python_version(), found[1] + found[2])


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _fits(version: str, needed: str) -> bool:
    """Whether a version is as `>=1.1,<4` says; other comparisons are not used by this package."""
    pairs = [(text[:2] == ">=", _numbers(text)) for text in needed.split(",") if text]
    return all((_numbers(version) >= bound) if at_least else (_numbers(version) < bound) for at_least, bound in pairs)


def _numbers(version: str) -> tuple[int, ...]:
    numbers = [int(number) for number in re.findall(r"\d+", version.partition("+")[0])[:3]]
    return (*numbers, *(0 for _ in range(3 - len(numbers))))


def _without_remedy(error: Exception) -> str:
    return re.split(r": (?:pip )?install ", str(error))[0]


def _first_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[0]

import functools
import importlib.metadata
import io
import os
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import envs
from dreamer import doctor, machine
from dreamer.cli import main
from dreamer.doctor import Check, Finding, Outcome

GOOD = Outcome(True, "20.0")
NO_LIBRARY = Outcome(False, "AttributeError: 'NoneType' object has no attribute 'glGetError'")
CPU = torch.device("cpu")


def no_memory_info(monkeypatch, total, free):
    monkeypatch.setattr(machine, "total_memory", lambda: total)
    monkeypatch.setattr(doctor, "available_memory", lambda: free)


def missing(name):
    def check():
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    return check


@pytest.fixture
def on_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("MUJOCO_GL", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")


@pytest.fixture
def fast(monkeypatch):
    """No processes: what they would find is in a dict, to be changed."""
    found = {"compile": Outcome(True, ""), "render": GOOD}

    def run_python(code, seconds, variables):
        return found["render" if code == doctor.RENDER else "compile"]

    monkeypatch.setattr(doctor, "run_python", run_python)
    monkeypatch.setattr(machine, "why_not_compile", lambda device: None)
    return found


def rendering(outcomes, chosen=None):
    """The findings by backend, from the outcomes by backend."""
    backends = [*outcomes]
    return {name: doctor.check_renderer(name, backends, chosen, outcomes.__getitem__) for name in backends}


def diagnose(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def test_command_when_all_is_well(fast, tmp_path, monkeypatch):
    result = diagnose(tmp_path, monkeypatch)
    assert result.exit_code == 0, result.stdout
    assert result.stdout.endswith("Everything needed to train works.\n")
    for name in (
        "Python",
        "packages",
        "torch",
        "device",
        "compiler",
        "precision",
        "ALE",
        "dm_control",
        "render",
        "memory",
    ):
        assert f" {name} " in result.stdout
    assert "104 games" in result.stdout
    assert "Compiling a small function, at most 60 seconds" in result.stderr
    wrapped = [line for line in result.stdout.splitlines() if "->" not in line and tmp_path.name not in line]
    assert max(map(len, wrapped)) <= doctor.WIDTH  # a path is not broken in two
    assert "\x1b" not in result.output
    assert not list(tmp_path.iterdir())


def test_command_when_something_is_missing(fast, tmp_path, monkeypatch):
    fast["compile"] = Outcome(False, "CppCompileError")
    monkeypatch.setitem(sys.modules, "ale_py", None)
    result = diagnose(tmp_path, monkeypatch)
    assert result.exit_code == 1
    assert "problem  ALE" in result.stdout
    assert "ale-py>=" in result.stdout
    assert "warning  compiler" in result.stdout
    assert "1 problem: ALE." in result.stdout


def test_no_compiler_on_the_path(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    finding = doctor.check_compiler()
    assert finding.state == "warning"
    assert "g++ was not found; everything works without" in finding.text
    assert "apt-get install g++ python3-dev" in finding.remedy


@pytest.mark.parametrize(
    "outcome, state, text",
    [
        (Outcome(True, ""), "ok", "torch.compile works"),
        (Outcome(False, "fatal error: Python.h"), "warning", "torch.compile fails: fatal error: Python.h"),
        (None, "warning", "not compiled within 60 seconds"),
    ],
)
def test_compiler_by_compiling(fast, outcome, state, text):
    fast["compile"] = outcome
    finding = doctor.check_compiler()
    assert finding.state == state
    assert text in finding.text


def test_compiling_uses_a_cache_of_its_own(monkeypatch):
    seen = {}

    def run_python(code, seconds, variables):
        compile(code, "doctor", "exec")
        seen.update(variables)
        assert os.path.isdir(variables["TORCHINDUCTOR_CACHE_DIR"])
        return Outcome(True, "")

    monkeypatch.setattr(doctor, "run_python", run_python)
    monkeypatch.setattr(machine, "why_not_compile", lambda device: None)
    doctor.check_compiler()
    assert not os.path.exists(seen["TORCHINDUCTOR_CACHE_DIR"])


@pytest.mark.parametrize(
    "fast_units, half_time, state", [(True, 0.5, "ok"), (True, 2.0, "warning"), (False, 2.0, "ok")]
)
def test_precision(monkeypatch, fast_units, half_time, state):
    monkeypatch.setattr(machine, "choose_device", lambda name: CPU)
    monkeypatch.setattr(machine, "has_fast_bfloat16", lambda device: fast_units)
    monkeypatch.setattr(doctor, "time_products", lambda device, dtype: half_time if dtype is torch.bfloat16 else 1.0)
    finding = doctor.check_precision()
    assert finding.state == state
    assert finding.text.startswith("bfloat16" if fast_units else "float32")
    assert bool(finding.remedy) == (state == "warning")


def test_timing_leaves_the_threads_as_they_were():
    threads = torch.get_num_threads()
    assert 0 < doctor.time_products(CPU, torch.float32) < 10
    assert torch.get_num_threads() == threads


def test_no_gpu_is_no_failure(monkeypatch):
    monkeypatch.setattr(machine, "choose_device", lambda name: CPU)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    assert doctor.check_device().state == "warning"


def test_a_gpu_that_this_torch_cannot_use(monkeypatch):
    monkeypatch.setattr(machine, "choose_device", lambda name: CPU)
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.version, "cuda", None)
    finding = doctor.check_device()
    assert "without CUDA" in finding.text
    assert "install --force-reinstall torch==" in finding.remedy


def test_ale():
    finding = doctor.check_ale(envs)
    assert finding.state == "ok"
    assert "104 games; played a frame of pong" in finding.text


def test_ale_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    finding = doctor.check_ale(envs)
    assert finding[:3] == ("ALE", "problem", "Atari games need the package ale_py")
    assert finding.remedy.endswith(" install 'ale-py>=0.11'")


def test_ale_that_is_installed_but_broken_is_installed_again(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    assert "--force-reinstall" in doctor.check_ale(envs).remedy


def test_ale_without_games():
    package = types.SimpleNamespace(
        suites=lambda: {"atari": types.SimpleNamespace(names=list)}, make=envs.make, TaskError=envs.TaskError
    )
    assert doctor.check_ale(package)[1:3] == ("problem", "ale_py has no games")


def test_dm_control():
    finding = doctor.check_dm_control(envs, None)
    assert finding.state == "ok", finding
    assert "stepped cartpole_swingup" in finding.text


@pytest.mark.parametrize(
    "error, chosen, text, remedy",
    [
        (envs.TaskError("It needs dm_control: pip install dm-control."), None, "It needs dm_control", "mujoco<4"),
        (envs.TaskError("no MUJOCO_GL=glfw: install the X"), "glfw", "no MUJOCO_GL=glfw", "unset MUJOCO_GL"),
        (AttributeError("flex_vertedge\nmore"), None, "AttributeError: flex_vertedge", "mujoco<4"),
    ],
)
def test_dm_control_that_does_not_work(error, chosen, text, remedy):
    def names():
        raise error

    package = types.SimpleNamespace(
        suites=lambda: {"dmc": types.SimpleNamespace(names=names)}, TaskError=envs.TaskError
    )
    finding = doctor.check_dm_control(package, chosen)
    assert finding.state == "problem"
    assert finding.text == text
    assert remedy in finding.remedy


def test_osmesa_is_not_needed_where_egl_works(on_linux):
    found = rendering({"egl": GOOD, "osmesa": NO_LIBRARY})
    assert found["egl"] == Finding("render egl", "ok", "a frame of 64x64 in 20.0 ms, used for cameras")
    assert found["osmesa"].state == "warning"
    assert found["osmesa"].text == "not needed, since egl works; no frame: its library is missing"
    assert found["osmesa"].remedy == "apt-get install libosmesa6"


def test_no_renderer(on_linux):
    found = rendering({"egl": NO_LIBRARY, "osmesa": None, "glfw": NO_LIBRARY})
    assert [finding.state for finding in found.values()] == ["problem", "problem", "warning"]
    assert found["egl"].remedy == "apt-get install libegl1 libgl1-mesa-dri"
    assert "no frame within 30 seconds" in found["osmesa"].text


def test_glfw_alone_is_not_chosen_by_itself(on_linux):
    found = rendering({"egl": NO_LIBRARY, "osmesa": NO_LIBRARY, "glfw": GOOD})
    assert found["egl"].state == "problem"
    assert "used" not in found["glfw"].text


def test_the_renderer_that_the_user_chose(on_linux):
    found = rendering({"egl": GOOD, "osmesa": NO_LIBRARY, "glfw": NO_LIBRARY}, chosen="glfw")
    assert [finding.state for finding in found.values()] == ["ok", "warning", "problem"]
    assert found["glfw"].remedy == "unset MUJOCO_GL"
    found = rendering({"egl": NO_LIBRARY, "osmesa": GOOD}, chosen="osmesa")
    assert [finding.state for finding in found.values()] == ["warning", "ok"]
    found = rendering({"egl": NO_LIBRARY, "osmesa": NO_LIBRARY}, chosen="egl")
    assert found["egl"].remedy == "apt-get install libegl1 libgl1-mesa-dri"


def test_rendering_without_dm_control(on_linux):
    outcome = Outcome(False, "ModuleNotFoundError: No module named 'dm_control'")
    assert {finding.state for finding in rendering({"egl": outcome, "osmesa": outcome}).values()} == {"warning"}


def test_which_renderers_are_tried(on_linux, monkeypatch):
    assert doctor.renderers() == ["egl", "osmesa"]
    monkeypatch.setenv("DISPLAY", ":0")
    assert doctor.renderers() == ["egl", "osmesa", "glfw"]
    monkeypatch.setenv("MUJOCO_GL", "off")
    assert doctor.renderers() == ["egl", "osmesa", "glfw", "off"]


def test_a_frame_is_really_drawn():
    outcomes = {backend: doctor.draw(backend, os.environ) for backend in ("off", "egl")}
    assert outcomes["off"] is not None
    assert not outcomes["off"].good
    if outcomes["egl"] is None or not outcomes["egl"].good:
        pytest.skip("EGL does not work here")
    assert float(outcomes["egl"].line) > 0


@pytest.mark.parametrize(
    "total, free, state", [(16e9, 12e9, "ok"), (16e9, 5e9, "warning"), (16e9, 0.5e9, "problem"), (16e9, None, "ok")]
)
def test_memory(monkeypatch, total, free, state):
    no_memory_info(monkeypatch, total, free)
    finding = doctor.check_memory()
    assert finding.state == state
    assert "a replay may take half, 8.0 GB" in finding.text


def test_available_memory():
    free = doctor.available_memory()
    assert free is None or free > 0


@pytest.mark.parametrize("free, state", [(90e9, "ok"), (5e9, "warning"), (0.1e9, "problem")])
def test_disk(monkeypatch, tmp_path, free, state):
    no_memory_info(monkeypatch, 16e9, None)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free, total=100e9))
    assert doctor.check_disk(tmp_path / "runs").state == state


def test_writing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finding = doctor.check_writing(Path("runs"))
    assert finding == Finding("writing", "ok", f"{tmp_path} can be written to; runs/ will be made there")
    Path("runs").mkdir()
    assert doctor.check_writing(Path("runs")).text == f"{tmp_path / 'runs'} can be written to"
    assert not list(Path("runs").iterdir())


def test_read_only_folder(tmp_path, monkeypatch):
    def refuse(dir):
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    finding = doctor.check_writing(tmp_path)
    assert finding.state == "problem"
    assert finding.text == f"{tmp_path}: Permission denied"
    assert "--run" in finding.remedy


def test_runs_is_a_file(tmp_path):
    (tmp_path / "runs").touch()
    assert doctor.check_writing(tmp_path / "runs").state == "problem"


def test_packages(monkeypatch):
    assert doctor.check_packages().state == "ok"
    real = importlib.metadata.version

    def version(name):
        if name == "mujoco":
            return "4.0.0"
        if name == "tensorboard":
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    finding = doctor.check_packages()
    assert finding.state == "problem"
    assert "mujoco is 4.0.0, <4 is needed" in finding.text
    assert "tensorboard is missing" in finding.text
    assert finding.remedy.endswith("'mujoco<4' tensorboard") or finding.remedy.endswith("tensorboard 'mujoco<4'")


def test_dreamer_itself_is_not_installed(monkeypatch):
    def not_found(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "requires", not_found)
    monkeypatch.setattr(importlib.metadata, "metadata", not_found)
    assert doctor.check_packages().state == "warning"
    assert doctor.check_python().state == "ok"


@pytest.mark.parametrize(
    "version, needed, fits",
    [
        ("2.13.0+cpu", ">=2.11", True),
        ("2.9.1", ">=2.11", False),
        ("4.0.0", "<4", False),
        ("3.17.0", ">=3,<4", True),
        ("1.1", ">=1.1.0", True),
        ("1", "", True),
    ],
)
def test_versions(version, needed, fits):
    assert doctor._fits(version, needed) is fits


@pytest.mark.parametrize("python, listed", [("3.12.1", "dm-control"), ("3.13.0", "dm-env")])
def test_what_is_needed_depends_on_python(python, listed, monkeypatch):
    lines = [
        'dm-control>=1.0.30; python_version < "3.13"',
        'dm-env; python_version >= "3.13"',
        "mujoco<4",
        'pytest>=8; extra == "test"',
    ]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: lines)
    monkeypatch.setattr(doctor.platform, "python_version", lambda: python)
    assert list(doctor._requirements()) == [listed, "mujoco"]
    monkeypatch.setattr(doctor, "_version", {"mujoco": "3.17.0"}.get)
    assert ("install --no-deps dm-control" in doctor._mend("dm-control", "mujoco")) == (python == "3.13.0")


def test_python_too_old(monkeypatch):
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.9.2")
    finding = doctor.check_python()
    assert finding.state == "problem"
    assert ">=3.11 is needed" in finding.text


def test_whatever_a_check_raises_is_a_finding():
    def check():
        raise OSError("libtorch.so\nis broken")

    assert doctor.run(Check("torch", check)) == Finding("torch", "problem", "OSError: libtorch.so")
    finding = doctor.run(Check("torch", missing("torch")))
    assert finding.state == "problem"
    assert finding.text == "the package torch is missing"
    assert doctor.run(Check("memory", missing("torch"))).state == "warning"
    assert "pillow" in doctor.run(Check("ALE", missing("PIL"))).remedy


def test_a_program_in_a_process_of_its_own():
    assert doctor.run_python("print(1); print(2)", 30, os.environ) == Outcome(True, "2")
    assert doctor.run_python("raise ValueError('so')", 30, os.environ) == Outcome(False, "ValueError: so")
    killed = doctor.run_python("import os; os.kill(os.getpid(), 9)", 30, os.environ)
    assert killed == Outcome(False, "exit code -9")


def test_what_takes_too_long_is_ended_with_all_that_it_started(tmp_path):
    late = tmp_path / "late"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(late)!r}).touch()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    start = time.monotonic()
    assert doctor.run_python(code, 1, os.environ) is None
    assert time.monotonic() - start < 2.5
    time.sleep(3)
    assert not late.exists()


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_what_is_said_meanwhile_goes_away_in_a_terminal_alone():
    screen, file = Screen(), io.StringIO()
    for stream in (screen, file):
        with doctor.saying("Compiling", stream):
            pass
        with doctor.saying("", stream):
            pass
    assert screen.getvalue() == "Compiling ...\r             \r"
    assert file.getvalue() == "Compiling ...\n"


def test_remedies_follow_on_a_line_of_their_own():
    assert doctor.report(Finding("ALE", "problem", "gone", "pip install ale-py")).splitlines() == [
        "problem  ALE            gone",
        "                        -> pip install ale-py",
    ]


def test_conclusion():
    problem = functools.partial(Finding, state="problem", text="")
    assert doctor.conclusion([Finding("GPU", "warning", "")]) == "Everything needed to train works."
    assert doctor.conclusion([problem("ALE"), problem("disk")]).startswith("2 problems: ALE, disk.")


def test_commands_are_for_this_system_and_this_python(monkeypatch, on_linux):
    assert doctor.debian("g++") == "apt-get install g++"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert doctor.debian("g++") == "sudo apt-get install g++"
    assert doctor.pip_install("x").startswith(sys.executable)  # since that pip is another's
    monkeypatch.setattr(doctor.shutil, "which", lambda name: str(Path(sys.executable).with_name(name)))
    assert doctor.pip_install("x<1") == "pip install 'x<1'"


def test_help_comes_at_once():
    code = "import sys, dreamer.cli; assert not {'torch', 'envs'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

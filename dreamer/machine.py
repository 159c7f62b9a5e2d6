"""What this machine can do: device, precision, compiler, memory."""

import ctypes
import os
import re
import shutil
import sys
import sysconfig
import time
from pathlib import Path

import torch

from .errors import UserMistake

CGROUP_CPU = Path("/sys/fs/cgroup/cpu.max")  # a container's share: microseconds of a period, or "max"
SHARED_BY = "DREAMER_SHARED_BY"  # variable: how many runs share this machine


class MachineError(UserMistake):
    """Something asked for that this machine does not have."""


def choose_device(name: str) -> torch.device:
    """`auto` takes a CUDA GPU where there is one, else the CPU; a Mac's GPU, which is untried, has to be named.

    Raises:
        MachineError: the named device is not there.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name not in ("auto", *available):
        raise MachineError(f"there is no device {name!r}; give auto, {', '.join(available)}")
    if name == "auto":
        name = "cuda" if available["cuda"] else "cpu"
    if not available[name]:
        there = " or ".join(kind for kind, is_there in available.items() if is_there)
        raise MachineError(f"this machine has no {name} device that torch can use; give --device {there}")
    return torch.device(name)


def product_seconds(size: int, device: torch.device, dtype: torch.dtype) -> float:
    """Of a product of two square matrices: the best of twenty, or of as many as fit into a second."""
    matrix = torch.randn(size, size, device=device).to(dtype)
    best, start = float("inf"), time.perf_counter()
    for _ in range(20):
        begun = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the device
        now = time.perf_counter()
        best = min(best, now - begun)
        if now - start > 1:
            break
    return best


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` takes bfloat16 where matrix products are fast in it, else float32."""
    if name == "auto":
        name = "bfloat16" if has_fast_bfloat16(device) else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether a GPU, or a CPU's AMX or AVX512-BF16 units, multiply bfloat16 in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        if hasattr(torch.cpu, "get_capabilities"):
            found = torch.cpu.get_capabilities()
            return bool(found.get("amx_bf16") or found.get("avx512_bf16"))
        return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()  # torch 2.11
    return False


def why_not_compile(device: torch.device) -> str | None:
    """What keeps torch.compile from working here, in words, or None.

    For a CPU Inductor builds C++, for a GPU Triton builds C, each by the compiler that it looks for itself.
    """
    if device.type == "mps":
        return "torch.compile does not support mps well"
    if device.type == "cuda":
        variable, usual = "CC", ["gcc", "clang"]
    else:
        variable, usual = "CXX", [{"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")]
    given = os.environ.get(variable)
    if not any(shutil.which(name) for name in ([given] if given else usual)):
        found = f"{variable}={given} is not there" if given else f"{' or '.join(usual)} was not found"
        return f"{found} (Debian: apt-get install g++)"
    # Debian's own Python names a folder of its own first, in which they are not.
    schemes = [sysconfig.get_default_scheme(), *({"posix_prefix"} & set(sysconfig.get_scheme_names()))]
    if not any(Path(sysconfig.get_path("include", scheme), "Python.h").exists() for scheme in schemes):
        return "Python's headers were not found (Debian: apt-get install python3-dev)"
    return None


def limit_threads() -> None:
    """Use no more threads than there are cores for this process; torch counts all that the machine has."""
    torch.set_num_threads(max(1, min(torch.get_num_threads(), usable_cores())))


def usable_cores() -> int:
    """Cores that this process may use: those that it is bound to, or its container's share if that is less."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CGROUP_CPU.read_text().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):  # none, or "max"
        return cores


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next update, instead of giving it back and faulting it in again.

    The tensors of an update are large, so each would be a mapping of its own, filled with zero pages at every use.
    """
    if sys.platform != "linux":
        return
    mmap_threshold, trim_threshold = -3, -1  # names of malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        # Some versions take no more than 32 MB; the second without the first would make all of it slower.
        if libc.mallopt(mmap_threshold, 1 << 30) or libc.mallopt(mmap_threshold, 1 << 25):
            libc.mallopt(trim_threshold, (1 << 31) - 1)
    except (OSError, AttributeError):
        pass  # another C library, which does as it likes


def keep_compiled_code() -> None:
    """Where the next boot leaves it: torch's own choice is the folder for temporary files.

    To be called before torch's compiler is imported, which looks for its folder then.
    """
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dreamer"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # who is logged in may have no home
        return
    if os.access(folder, os.W_OK) and not re.search(r"\s", str(folder)):  # torch calls the compiler without quotes
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))


def total_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's if that is less.

    Where several runs share it, as `SHARED_BY` tells, each has its part.
    """
    return _memory() // int(os.environ.get(SHARED_BY) or 1)


def _memory() -> int:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8 << 30  # Windows does not tell; assume a small machine
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            total = min(total, int(Path(limit).read_text()))
        except (OSError, ValueError):
            continue
    return total


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether memory was missing. CUDA's libraries say it in errors of their own, and a compiler wraps them."""
    while error is not None:
        words = ("CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
        if isinstance(error, torch.OutOfMemoryError) or any(each in str(error) for each in words):
            return True
        error = error.__cause__ or error.__context__
    return False


def device_memory(device: torch.device) -> int:
    """Bytes of memory that this process may take on a device, what it has already among them."""
    if device.type != "cuda":
        return total_memory()
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)  # the rest is others'

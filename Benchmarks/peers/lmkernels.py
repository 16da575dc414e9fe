"""The kernels from Python, and how the scripts beside this file measure: in turns with the peer, in one process.

Build the library first, in the root of the package:

    swift build -c release --product lmkernels
"""

import ctypes
import os
import statistics
import time
from ctypes import POINTER, Structure, byref, c_double, c_float, c_int, c_int64, c_size_t, c_uint, c_void_p

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
FLOAT32, BFLOAT16 = 0, 1
LAYOUTS = {"NN": 0, "NT": 1, "TN": 2}
MODES = ["forward", "panel", "recompute"]


# The structures of lmk_core.h and lmk_cross_entropy.h.


class Matmul(Structure):
    _fields_ = [
        ("layout", c_int), ("dtype", c_int),
        ("batch", c_size_t), ("rows", c_size_t), ("columns", c_size_t), ("depth", c_size_t),
        ("a", c_void_p), ("a_stride", c_size_t), ("a_batch_stride", c_size_t),
        ("b", c_void_p), ("b_stride", c_size_t), ("b_batch_stride", c_size_t),
        ("c", c_void_p), ("c_stride", c_size_t), ("c_batch_stride", c_size_t),
        ("accumulate", c_int), ("threads", c_uint),
    ]  # fmt: skip


class CrossEntropy(Structure):
    _fields_ = [
        ("rows", c_size_t), ("features", c_size_t), ("vocabulary", c_size_t),
        ("hidden", c_void_p), ("hidden_stride", c_size_t),
        ("classifier", c_void_p), ("classifier_stride", c_size_t),
        ("bias", c_void_p), ("class_weights", c_void_p),
        ("targets", c_void_p), ("target_type", c_int), ("ignore_index", c_int64),
        ("target_shift", c_size_t), ("tokens_per_sequence", c_size_t),
        ("softcap", c_float), ("logit_scale", c_float), ("label_smoothing", c_float), ("z_loss", c_float),
        ("reduction", c_int), ("memory_budget", c_size_t), ("threads", c_uint),
    ]  # fmt: skip


class Outputs(Structure):
    _fields_ = [
        ("loss", c_void_p), ("log_sum_exp", c_void_p), ("entropy", c_void_p),
        ("predicted", c_void_p), ("target_logit", c_void_p), ("row_states", c_void_p),
    ]  # fmt: skip


class Gradients(Structure):
    _fields_ = [
        ("loss_gradient", c_float), ("loss_gradients", c_void_p),
        ("log_sum_exp_gradients", c_void_p), ("entropy_gradients", c_void_p),
        ("hidden", c_void_p), ("hidden_stride", c_size_t),
        ("classifier", c_void_p), ("classifier_stride", c_size_t), ("bias", c_void_p),
        ("accumulate_hidden", c_int), ("accumulate_classifier", c_int), ("accumulate_bias", c_int),
    ]  # fmt: skip


class Summary(Structure):
    _fields_ = [
        ("loss", c_double), ("valid_rows", c_size_t), ("weight", c_double), ("correct", c_size_t),
        ("mode", c_int), ("block_rows", c_size_t), ("block_vocabulary", c_size_t),
    ]  # fmt: skip


def load():
    """The shared library; LMK_LIBRARY names another one than that of a release build."""
    suffix = "dylib" if os.uname().sysname == "Darwin" else "so"
    path = os.environ.get("LMK_LIBRARY", os.path.join(ROOT, ".build/release/liblmkernels." + suffix))
    if not os.path.exists(path):
        raise SystemExit(f"{path} is missing. Run: swift build -c release --product lmkernels")
    library = ctypes.CDLL(path)
    library.lmk_probe_arithmetic.restype = c_double
    library.lmk_probe_arithmetic.argtypes = [c_int, c_size_t]
    library.lmk_matmul_workspace_size.restype = c_size_t
    library.lmk_matmul_workspace_size.argtypes = [POINTER(Matmul)]
    library.lmk_matmul_run.argtypes = [POINTER(Matmul), c_void_p, c_size_t, c_void_p]
    library.lmk_cross_entropy_workspace_size.restype = c_size_t
    library.lmk_cross_entropy_workspace_size.argtypes = [POINTER(CrossEntropy), POINTER(Gradients)]
    rest = [POINTER(Summary), c_void_p, c_size_t, c_void_p]
    library.lmk_cross_entropy_forward.argtypes = [POINTER(CrossEntropy), POINTER(Outputs)] + rest
    library.lmk_cross_entropy_forward_backward.argtypes = [
        POINTER(CrossEntropy), POINTER(Outputs), POINTER(Gradients)] + rest  # fmt: skip
    return library


class Workspace:
    """Memory of a call, aligned to a cache line."""

    def __init__(self, size):
        self.size = size
        self.memory = ctypes.create_string_buffer(size + 64) if size else None
        self.address = (ctypes.addressof(self.memory) + 63) // 64 * 64 if size else None


def check(status):
    if status != 0:
        raise RuntimeError(f"a kernel refused its arguments: lmk_status {status}")


# How it is measured.


def peak(library, dtype):
    """Operations per second that one thread reaches now: the best of short runs, as in `lmk info`."""
    probe = lambda repeats: library.lmk_probe_arithmetic(dtype, repeats)
    if probe(1) == 0:  # bfloat16 is widened
        return peak(library, FLOAT32)
    repeats = 1
    while seconds(lambda: probe(repeats)) < 0.002:
        repeats *= 2
    best = min(seconds(lambda: probe(repeats)) for _ in range(12))
    return probe(1) * repeats / best


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(library, dtype, threads, operations, contenders, iterations, calls=1):
    """Times contenders in turns and prints a row for each.

    `contenders` has pairs of a name and a function that prepares and returns the call. Each call is held against the peak
    of one thread, measured right before, times the threads; rows have medians. The last column is by how much memory grew
    at most, until the end of the first call: what was prepared, what is returned, and what was needed in between.
    """
    prepared = []
    for name, prepare in contenders:
        start = reset_peak_memory()
        call = prepare()
        call()
        prepared.append((name, call, peak_memory() - start))
    samples = {name: [] for name, _ in contenders}
    for _ in range(iterations):
        for name, call, _ in prepared:
            limit = peak(library, dtype) * threads
            cpu = time.process_time()
            times = [seconds(call) for _ in range(calls)]
            share = (time.process_time() - cpu) / (sum(times) * threads)
            samples[name].append((statistics.median(times), limit, share))
    for name, _, memory in prepared:
        time_ = statistics.median(s[0] for s in samples[name])
        percent = statistics.median(100 * operations / s[0] / s[1] for s in samples[name])
        limit = statistics.median(s[1] for s in samples[name])
        share = statistics.median(s[2] for s in samples[name])
        row = f"{name:<82} {operations / time_ / 1e9:7.1f} GFLOP/s {percent:5.1f} % of {limit / 1e9:4.0f} "
        row += f"{1e3 * time_:8.{3 if time_ < 1e-3 else 2 if time_ < 1e-2 else 1 if time_ < 0.1 else 0}f} ms "
        row += f"{memory / 1e6:6.0f} MB"
        if share < 0.9:
            row += f"  had CPUs {100 * share:.0f} % of the time"
        print(row, flush=True)


def describe(threads):
    return "1 thread" if threads == 1 else f"{threads} threads"


def reset_peak_memory():
    """Bytes that are resident now; from here on counts `peak_memory`. 0 where the system does not tell."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        return 0
    return status_bytes("VmRSS")


def peak_memory():
    return status_bytes("VmHWM")


def status_bytes(field):
    try:
        with open("/proc/self/status") as file:
            return next(1024 * int(line.split()[1]) for line in file if line.startswith(field + ":"))
    except OSError:
        return 0

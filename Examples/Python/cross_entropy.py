#!/usr/bin/env python3
"""Cut cross-entropy from Python: the loss next to NumPy's, which needs the logits of every row.

    swift build -c release --product lmkernels
    python3 Examples/Python/cross_entropy.py .build/release/liblmkernels.so
"""
import ctypes
import sys
from ctypes import POINTER, c_float, c_int, c_int64, c_size_t, c_uint, c_void_p

import numpy as np


class Problem(ctypes.Structure):  # lmk_cross_entropy, field by field
    _fields_ = [
        ("rows", c_size_t), ("features", c_size_t), ("vocabulary", c_size_t),
        ("hidden", c_void_p), ("hidden_stride", c_size_t),
        ("classifier", c_void_p), ("classifier_stride", c_size_t),
        ("bias", c_void_p), ("class_weights", c_void_p),
        ("targets", c_void_p), ("target_type", c_int), ("ignore_index", c_int64),
        ("target_shift", c_size_t), ("tokens_per_sequence", c_size_t),
        ("softcap", c_float), ("logit_scale", c_float), ("label_smoothing", c_float), ("z_loss", c_float),
        ("reduction", c_int), ("memory_budget", c_size_t), ("threads", c_uint),
    ]


class Outputs(ctypes.Structure):  # lmk_cross_entropy_outputs
    _fields_ = [(name, c_void_p) for name in
                ("loss", "log_sum_exp", "entropy", "predicted", "target_logit", "row_states")]


library = ctypes.CDLL(sys.argv[1] if len(sys.argv) > 1 else ".build/release/liblmkernels.so")
workspace_size = library.lmk_cross_entropy_workspace_size
workspace_size.restype, workspace_size.argtypes = c_size_t, [POINTER(Problem), c_void_p]
forward = library.lmk_cross_entropy_forward
forward.argtypes = [POINTER(Problem), POINTER(Outputs), c_void_p, c_void_p, c_size_t, c_void_p]

random = np.random.default_rng(0)
rows, features, vocabulary = 512, 64, 32000
hidden = random.standard_normal((rows, features), np.float32)
classifier = random.standard_normal((vocabulary, features), np.float32) / 8
targets = random.integers(vocabulary, size=rows)

problem = Problem(rows=rows, features=features, vocabulary=vocabulary, logit_scale=1, ignore_index=-100,
                  hidden=hidden.ctypes.data, hidden_stride=features,
                  classifier=classifier.ctypes.data, classifier_stride=features, targets=targets.ctypes.data)
loss = np.empty(rows, np.float32)
size = workspace_size(problem, None)
workspace = ctypes.create_string_buffer(size)
status = forward(problem, Outputs(loss=loss.ctypes.data), None, workspace, size, None)
if status != 0:
    sys.exit(f"lmk_cross_entropy_forward: status {status}")

logits = hidden.astype(float) @ classifier.astype(float).T
dense = np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(rows), targets]
print(f"cut   {loss.mean(dtype=float):.7f}  with {size / 2**20:.1f} MiB of workspace")
print(f"dense {dense.mean():.7f}  with {4 * logits.size / 2**20:.1f} MiB of float32 logits")
sys.exit(not np.allclose(loss, dense, rtol=1e-5))

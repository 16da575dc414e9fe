#!/usr/bin/env python3
"""Matrix products: the kernels and PyTorch, in turns.

    swift build -c release --product lmkernels && python3 Benchmarks/peers/matmul_torch.py
"""

import argparse
from ctypes import byref

import lmkernels
import torch
from lmkernels import BFLOAT16, FLOAT32, LAYOUTS, Matmul, Workspace, check, compare, describe

# dtype, layout, rows, columns, depth, batch, iterations, calls in each
PROBLEMS = [
    (FLOAT32, "NN", 1024, 1024, 1024, 1, 11, 1),
    (FLOAT32, "NT", 1024, 1024, 1024, 1, 11, 1),
    (FLOAT32, "TN", 1024, 1024, 1024, 1, 11, 1),
    (BFLOAT16, "NT", 1024, 1024, 1024, 1, 11, 1),
    (FLOAT32, "NN", 64, 64, 64, 64, 7, 200),
    (FLOAT32, "NT", 64, 64, 64, 64, 7, 200),
    (FLOAT32, "TN", 64, 64, 64, 64, 7, 200),
    (FLOAT32, "NT", 1, 32768, 1024, 1, 11, 1),
    (FLOAT32, "NT", 4, 32768, 1024, 1, 11, 1),
    (FLOAT32, "NT", 16, 32768, 1024, 1, 11, 1),
    (FLOAT32, "NT", 2048, 32768, 1024, 1, 3, 1),
]


def operands(dtype, layout, rows, columns, depth, batch):
    """As they lie in memory."""
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(batch, *((depth, rows) if layout == "TN" else (rows, depth)), generator=generator)
    b = torch.randn(batch, *((columns, depth) if layout == "NT" else (depth, columns)), generator=generator)
    type_ = torch.bfloat16 if dtype == BFLOAT16 else torch.float32
    return a.to(type_), b.to(type_)


def kernel(library, dtype, layout, rows, columns, depth, batch, threads):
    a, b = operands(dtype, layout, rows, columns, depth, batch)
    c = torch.zeros(batch, rows, columns)
    matmul = Matmul(
        LAYOUTS[layout], dtype, batch, rows, columns, depth, a.data_ptr(), a.stride(1), a.stride(0), b.data_ptr(),
        b.stride(1), b.stride(0), c.data_ptr(), c.stride(1), c.stride(0), 0, threads)  # fmt: skip
    workspace = Workspace(library.lmk_matmul_workspace_size(byref(matmul)))

    def call(keep=(a, b, c)):
        check(library.lmk_matmul_run(byref(matmul), workspace.address, workspace.size, None))
        return c

    return call


def peer(dtype, layout, rows, columns, depth, batch):
    """PyTorch writes bfloat16 where the kernels write float32."""
    a, b = operands(dtype, layout, rows, columns, depth, batch)
    a = a.transpose(1, 2) if layout == "TN" else a
    b = b.transpose(1, 2) if layout == "NT" else b
    c = torch.zeros(batch, rows, columns, dtype=a.dtype)
    if batch == 1:  # the product of matrices is the faster call
        a, b, c = a[0], b[0], c[0]
    return lambda: torch.matmul(a, b, out=c)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    arguments = parser.parse_args()
    library = lmkernels.load()
    print(f"PyTorch {torch.__version__}")
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for dtype, layout, rows, columns, depth, batch, iterations, calls in PROBLEMS:
            problem = (dtype, layout, rows, columns, depth, batch)
            name = f"matmul {['float32', 'bfloat16'][dtype]} {layout} {rows}x{columns}x{depth}"
            name += (f", batch {batch}" if batch > 1 else "") + ", " + describe(threads)
            contenders = [
                (name, lambda: kernel(library, *problem, threads)),
                (name + ", PyTorch", lambda: peer(*problem)),
            ]
            operations = 2 * batch * rows * columns * depth
            compare(library, dtype, threads, operations, contenders, iterations, calls)


if __name__ == "__main__":
    with torch.no_grad():
        main()

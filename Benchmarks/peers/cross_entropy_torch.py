#!/usr/bin/env python3
"""Linear classifier and cross-entropy: the kernels and ways to write it in PyTorch, in turns.

    swift build -c release --product lmkernels && python3 Benchmarks/peers/cross_entropy_torch.py

Losses are compared too; a difference above 1e-5 stops the script. --compile adds torch.compile, which wants a C++ compiler.
"""

import argparse
from ctypes import byref

import lmkernels
import torch
import torch.nn.functional as F
from lmkernels import FLOAT32, MODES, CrossEntropy, Gradients, Outputs, Summary, Workspace, check, compare, describe


def kernel(library, hidden, classifier, targets, threads, gradients, budget):
    (rows, features), vocabulary = hidden.shape, classifier.shape[0]
    problem = CrossEntropy(
        rows=rows, features=features, vocabulary=vocabulary, hidden=hidden.data_ptr(), hidden_stride=features,
        classifier=classifier.data_ptr(), classifier_stride=features, targets=targets.data_ptr(), target_type=0,
        ignore_index=-100, tokens_per_sequence=rows, logit_scale=1, reduction=1, memory_budget=budget,
        threads=threads)  # fmt: skip
    losses = torch.empty(rows)
    outputs, summary = Outputs(loss=losses.data_ptr()), Summary()
    if not gradients:
        workspace = Workspace(library.lmk_cross_entropy_workspace_size(byref(problem), None))

        def forward(keep=(hidden, classifier, targets, losses)):
            check(library.lmk_cross_entropy_forward(
                byref(problem), byref(outputs), byref(summary), workspace.address, workspace.size, None))
            return summary.loss  # fmt: skip

        return forward
    hidden_gradient, classifier_gradient = torch.empty_like(hidden), torch.empty_like(classifier)
    request = Gradients(
        loss_gradient=1, hidden=hidden_gradient.data_ptr(), hidden_stride=features,
        classifier=classifier_gradient.data_ptr(), classifier_stride=features)  # fmt: skip
    workspace = Workspace(library.lmk_cross_entropy_workspace_size(byref(problem), byref(request)))

    def forward_backward(keep=(hidden, classifier, targets, losses, hidden_gradient, classifier_gradient)):
        check(library.lmk_cross_entropy_forward_backward(
            byref(problem), byref(outputs), byref(request), byref(summary), workspace.address, workspace.size, None))
        assert MODES[summary.mode] == ("recompute" if budget else "panel")
        return summary.loss  # fmt: skip

    return forward_backward


def eager(hidden, classifier, targets):
    return F.cross_entropy(hidden @ classifier.T, targets)


def peer(loss, hidden, classifier, targets, gradients):
    hidden, classifier = hidden.detach(), classifier.detach()
    if not gradients:

        def forward():
            with torch.no_grad():
                return loss(hidden, classifier, targets).item()

        return forward
    hidden.requires_grad_(), classifier.requires_grad_()

    def forward_backward():
        hidden.grad = classifier.grad = None
        result = loss(hidden, classifier, targets)
        result.backward()
        return result.item()

    return forward_backward


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--features", type=int, default=1024)
    parser.add_argument("--vocabulary", type=int, default=32768)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    arguments = parser.parse_args()
    rows, features, vocabulary = arguments.rows, arguments.features, arguments.vocabulary
    library = lmkernels.load()
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(rows, features, generator=generator)
    classifier = torch.randn(vocabulary, features, generator=generator) / features**0.5
    targets = torch.randint(vocabulary, (rows,), generator=generator)
    inputs = (hidden, classifier, targets)

    losses = {"PyTorch, all logits": eager}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):  # from 2.13
        chunks = torch.nn.LinearCrossEntropyOptions()
        losses["PyTorch, in chunks"] = lambda h, c, t: F.linear_cross_entropy(h, c, t, options=chunks)
    if arguments.compile:
        losses["torch.compile"] = torch.compile(eager)

    print(f"PyTorch {torch.__version__}")
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for gradients in [False, True]:
            name = f"cross-entropy {'loss and gradients' if gradients else 'forward'} {rows}x{vocabulary}x{features}, "
            name += describe(threads)
            budgets = {", panel": 0, ", recompute": 8 << 20} if gradients else {"": 0}
            contenders = [
                (name + way, lambda budget=budget: kernel(library, *inputs, threads, gradients, budget))
                for way, budget in budgets.items()
            ] + [
                (f"{name}, {way}", lambda loss=loss: peer(loss, *inputs, gradients)) for way, loss in losses.items()
            ]  # fmt: skip
            results = [prepare()() for _, prepare in contenders]
            if max(results) - min(results) > 1e-5 * max(results):
                raise SystemExit(f"losses differ: {results}")
            operations = (6 if gradients else 2) * rows * vocabulary * features
            compare(library, FLOAT32, threads, operations, contenders, arguments.iterations)


if __name__ == "__main__":
    main()

import LMKernels
import Testing

private struct Call {
    var shape = HouseholderProduct.Shape(batch: 2, factors: 3, dimensions: 4, vectors: 5)
    var strides = HouseholderProduct.Strides()
    var side = HouseholderProduct.Side.left
    var threads = 1
    var k = 24
    var beta = 6
    var x = 40
    var y = 40
    var triangle = 18
    var kGradient = 24
    var betaGradient = 6
    var xGradient = 40
    var yGradient = 40

    enum Kind { case apply, inPlace, backward, triangle }

    func refused(_ kind: Kind) -> KernelError? {
        func array(_ count: Int) -> [Float] { Array(repeating: 1, count: count) }
        let (k, beta, x, dy) = (array(k), array(beta), array(x), array(yGradient))
        var (y, t) = (array(y), array(triangle))
        var (dk, dbeta, dx) = (array(kGradient), array(betaGradient), array(xGradient))
        let found = refusal {
            switch kind {
            case .apply:
                var part = y.mutableSpan
                try HouseholderProduct.apply(
                    k.span, beta: beta.span, to: x.span, into: &part, shape: shape, side: side,
                    strides: strides, threads: threads, workspace: Workspace())
            case .inPlace:
                var part = y.mutableSpan
                try HouseholderProduct.apply(
                    k.span, beta: beta.span, inPlace: &part, shape: shape, side: side,
                    strides: strides, threads: threads, workspace: Workspace())
            case .backward:
                try HouseholderProduct.backward(
                    k.span, beta: beta.span, x: x.span, yGradient: dy.span,
                    kGradient: dk.mutableSpan, betaGradient: dbeta.mutableSpan,
                    xGradient: dx.mutableSpan, shape: shape, side: side, strides: strides,
                    threads: threads, workspace: Workspace())
            case .triangle:
                var part = t.mutableSpan
                try HouseholderProduct.triangle(
                    k.span, beta: beta.span, into: &part, shape: shape, strides: strides,
                    threads: threads, workspace: Workspace())
            }
        }
        if found != nil {
            #expect((y + t + dk + dbeta + dx).allSatisfy { $0 == 1 }, "nothing is written")
        }
        return found
    }
}

extension KernelSuite {
    @Suite struct HouseholderProductErrorTests {
        private func expect(
            _ error: KernelError?, _ kinds: [Call.Kind] = [.apply, .inPlace, .backward, .triangle],
            _ change: (inout Call) -> Void
        ) {
            for kind in kinds {
                var call = Call()
                change(&call)
                #expect(call.refused(kind) == error, "\(kind)")
            }
        }

        @Test func sizes() {
            expect(nil) { _ in }
            for (name, path) in [
                ("batch", \HouseholderProduct.Shape.batch), ("factors", \.factors),
                ("dimensions", \.dimensions), ("vectors", \.vectors),
            ] {
                expect(.outOfRange(argument: name, allowed: ">= 0", actual: "-1")) {
                    $0.shape[keyPath: path] = -1
                }
            }
            expect(.outOfRange(argument: "threads", allowed: ">= 0", actual: "-2")) {
                $0.threads = -2
            }
        }

        @Test func spans() {
            expect(.tooSmall(argument: "k", minimum: 24, actual: 23)) { $0.k = 23 }
            expect(.tooSmall(argument: "beta", minimum: 6, actual: 5)) { $0.beta = 5 }
            expect(.tooSmall(argument: "x", minimum: 40, actual: 39), [.apply, .backward]) {
                $0.x = 39
            }
            expect(.tooSmall(argument: "x", minimum: 40, actual: 39), [.inPlace]) { $0.y = 39 }
            expect(.tooSmall(argument: "y", minimum: 40, actual: 39), [.apply]) { $0.y = 39 }
            expect(.tooSmall(argument: "triangle", minimum: 18, actual: 17), [.triangle]) {
                $0.triangle = 17
            }
            expect(.tooSmall(argument: "yGradient", minimum: 40, actual: 0), [.backward]) {
                $0.yGradient = 0
            }
            expect(.tooSmall(argument: "kGradient", minimum: 24, actual: 23), [.backward]) {
                $0.kGradient = 23
            }
            expect(.tooSmall(argument: "betaGradient", minimum: 6, actual: 1), [.backward]) {
                $0.betaGradient = 1
            }
            expect(.tooSmall(argument: "xGradient", minimum: 40, actual: 39), [.backward]) {
                $0.xGradient = 39
            }
        }

        @Test func strides() {
            expect(.tooSmall(argument: "kStride", minimum: 4, actual: 3)) {
                $0.strides.k.row = 3
            }
            expect(.outOfRange(argument: "kBatchStride", allowed: ">= 0", actual: "-1")) {
                $0.strides.k.batch = -1
            }
            expect(.tooSmall(argument: "xStride", minimum: 5, actual: 4), [.apply, .backward]) {
                $0.strides.x.row = 4
            }
            expect(.tooSmall(argument: "yStride", minimum: 5, actual: 4), [.apply]) {
                $0.strides.y.row = 4
            }
            expect(.tooSmall(argument: "yStride", minimum: 4, actual: 3), [.apply]) {
                $0.side = .right
                $0.strides.y.row = 3
            }
            // Inputs may overlap, outputs may not.
            expect(nil, [.apply, .backward]) { $0.strides.x.batch = 1 }
            expect(.tooSmall(argument: "xBatchStride", minimum: 20, actual: 1), [.inPlace]) {
                $0.strides.x.batch = 1
            }
            expect(.tooSmall(argument: "yBatchStride", minimum: 20, actual: 19), [.apply]) {
                $0.strides.y.batch = 19
            }
            expect(.tooSmall(argument: "triangleBatchStride", minimum: 9, actual: 8), [.triangle]) {
                $0.strides.triangle.batch = 8
            }
            expect(.tooSmall(argument: "kGradientBatchStride", minimum: 12, actual: 0), [.backward])
            { $0.strides.kGradient.batch = 0 }
            expect(
                .tooSmall(argument: "betaGradientBatchStride", minimum: 3, actual: 2), [.backward]
            ) { $0.strides.betaGradientBatch = 2 }
            expect(.tooSmall(argument: "xGradientBatchStride", minimum: 20, actual: 3), [.backward])
            { $0.strides.xGradient.batch = 3 }
        }

        @Test func overflow() {
            expect(.overflow(argument: "k")) {
                $0.shape.dimensions = .max / 2
                $0.shape.vectors = 1
            }
            expect(.overflow(argument: "x"), [.apply, .backward]) {
                $0.shape.factors = 0
                $0.shape.dimensions = .max / 2
            }
        }
    }
}

import Foundation
import LMKernels
import Testing

extension KernelSuite {
    @Suite struct CoreTests {
        // MARK: Storage

        @Test func bfloat16Values() {
            #expect(BFloat16(1).bitPattern == 0x3f80)
            #expect(BFloat16(-0.0).bitPattern == 0x8000)
            #expect(BFloat16(.infinity).bitPattern == 0x7f80)
            #expect(BFloat16(.greatestFiniteMagnitude).bitPattern == 0x7f80)
            #expect(BFloat16(0x1.fefffep127).bitPattern == 0x7f7f)
            #expect(BFloat16(Float(bitPattern: 0x7f80_0001)).bitPattern == 0x7fc0)
            #expect(BFloat16(Float(bitPattern: 0xffff_ffff)).bitPattern == 0xffff)
            #expect(BFloat16(3.140625).description == "3.140625")
            #expect(BFloat16(.nan) == BFloat16(.nan))
            #expect(BFloat16(0) != BFloat16(-0.0))
            #expect(MemoryLayout<BFloat16>.size == 2)
        }

        @Test func storageTypes() {
            #expect(Float.storageType == .float32)
            #expect(BFloat16.storageType == .bfloat16)
            #expect(Float16.storageType == .float16)
        }

        // MARK: Errors

        @Test func errorsSayWhatIsWrong() {
            #expect(
                "\(KernelError.outOfRange(argument: "softcap", allowed: "finite", actual: "inf"))"
                    == "softcap is inf, allowed is finite")
            #expect(
                "\(KernelError.tooSmall(argument: "hidden", minimum: 12, actual: 11))"
                    == "hidden is 11, at least 12 is needed")
            #expect(
                "\(KernelError.countMismatch(argument: "bias", expected: 3, actual: 4))"
                    == "bias has 4 elements, 3 are needed")
            #expect(
                "\(KernelError.overflow(argument: "a"))"
                    == "a has more bytes than 64 bits can count")
            #expect(
                "\(KernelError.badEntry(argument: "targets", index: 5, value: 9, limit: 7))"
                    == "targets[5] is 9, allowed is 0 ..< 7")
            #expect(
                "\(KernelError.conflict(argument: "entropy", reason: "is missing"))"
                    == "entropy: is missing")
        }

        // MARK: Workspace

        @Test func workspaceGrowsAndStays() throws {
            let workspace = Workspace()
            #expect(workspace.byteCount == 0)
            let x = Array(repeating: Float(1), count: 64 * 64)
            var y = x
            func multiply(_ size: Int) throws {
                var span = y.mutableSpan
                try Matmul.multiply(
                    x.span, x.span, into: &span,
                    shape: .init(rows: size, columns: size, depth: size), threads: 1,
                    workspace: workspace)
            }
            try multiply(1)
            let small = workspace.byteCount
            #expect(small > 0)
            try multiply(64)
            let large = workspace.byteCount
            #expect(large > small)
            try multiply(1)
            #expect(workspace.byteCount == large)
            #expect(Workspace(byteCount: 1 << 20).byteCount == 1 << 20)
        }

        // MARK: Instruction sets and threads

        @Test func instructionSets() {
            #expect(InstructionSet.current.isSupported)
            #expect(InstructionSet.generic.isSupported)
            #if arch(x86_64)
                #expect(!InstructionSet.neon.isSupported)
                #expect(!InstructionSet.use(.neon))
                // A larger set contains the smaller ones.
                let supported = [InstructionSet.generic, .avx2, .avx512, .avx512bf16, .amx]
                    .map(\.isSupported)
                #expect(supported == supported.sorted { $0 && !$1 })
            #endif
            let before = InstructionSet.current
            withEachInstructionSet { set in #expect(InstructionSet.current == set) }
            #expect(InstructionSet.current == before)
        }

        @Test func threadCounts() {
            #expect(Threads.count() >= 1)
            #expect(Threads.count(limit: 3) == 3)
            #expect(Threads.count(limit: .max) == 1024)
            #if os(Linux)
                #expect(["libomp", "libgomp"].contains(Threads.runtime))
            #else
                #expect(Threads.runtime == "libdispatch")
            #endif
        }

        // MARK: Machine

        @Test func machineLimitsAreFound() throws {
            #if os(Linux) && arch(x86_64)
                #expect(!Machine.cpuName.isEmpty && !Machine.cpuName.contains("\n"))
            #endif
            let caches = Machine.cacheSizes
            #expect(caches == caches.sorted() && caches.allSatisfy { $0 > 0 })
            try withEachInstructionSet { set in
                let peak = try #require(Machine.arithmeticPeak(Float.self, threads: 1))
                // Between one operation in several cycles and hundreds in each.
                #expect((1e8...1e13).contains(peak), "\(set)")
                let pairs = Machine.arithmeticPeak(BFloat16.self, threads: 1)
                #expect((pairs != nil) == pairSets.contains(set))
                #expect(pairs.map((1e8...1e13).contains) ?? true, "\(set)")
                #expect(Machine.arithmeticPeak(Float16.self) == nil)
            }
            #expect(Machine.readBandwidth(bytes: 16 << 10, threads: 1) > 1e8)
            #expect(Machine.readBandwidth(bytes: 0, threads: 3) > 0)
            #expect(Machine.copyBandwidth(bytes: 1 << 20, threads: 2) > 1e7)
            #expect(Machine.copyBandwidth(bytes: 1 << 20, threads: 1, streaming: true) > 1e7)
            #expect(Machine.forkJoinCost(threads: 2) < 1)
        }
    }
}

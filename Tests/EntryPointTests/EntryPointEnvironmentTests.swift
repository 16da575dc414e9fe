import CLMKCore
import Foundation
import Testing

/// LMK_ISA is read once: every case is a process of its own.
@Suite struct EntryPointEnvironmentTests {
    @Test func chosenInstructionSet() async {
        await #expect(processExitsWith: .success) {
            setenv("LMK_ISA", "generic", 1)
            exit(lmk_cpu_isa() == .LMK_ISA_GENERIC ? EXIT_SUCCESS : EXIT_FAILURE)
        }
    }

    /// What the CPU cannot run, and what nobody knows, is not chosen.
    @Test func instructionSetThatTheCPULacks() async {
        await #expect(processExitsWith: .success) {
            #if arch(x86_64)
                setenv("LMK_ISA", "neon", 1)
            #else
                setenv("LMK_ISA", "avx2", 1)
            #endif
            exit(lmk_cpu_can_run(lmk_cpu_isa()) != 0 ? EXIT_SUCCESS : EXIT_FAILURE)
        }
        await #expect(processExitsWith: .success) {
            setenv("LMK_ISA", "fastest", 1)
            exit(lmk_cpu_can_run(lmk_cpu_isa()) != 0 ? EXIT_SUCCESS : EXIT_FAILURE)
        }
    }
}

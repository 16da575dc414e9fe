import ArgumentParser

@main
struct LMKCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "lmk",
        abstract: "Language-model kernels: what this machine can do, and whether they are right.",
        subcommands: [InfoCommand.self, CheckCommand.self, FuzzCommand.self]
    )
}

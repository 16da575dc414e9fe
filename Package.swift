// swift-tools-version: 6.2
import PackageDescription

// MARK: Settings

let swiftSettings: [SwiftSetting] = [.strictMemorySafety()]

/// A kernel family sees the core's internal headers: vectors, tile products, validation.
let familySettings: [CSetting] = [.headerSearchPath("../CLMKCore/internal")]

/// Those with states over tokens share chunks, rows, decays and plans too.
let tokenFamilySettings: [CSetting] =
    familySettings + [.headerSearchPath("../CLMKLinearAttention/internal")]

let families: [Target.Dependency] = [
    "CLMKCore", "CLMKCrossEntropy", "CLMKSoftmax", "CLMKLinearAttention", "CLMKDeltaRule",
]

// MARK: Package

let package = Package(
    name: "swift-lm-kernels",
    platforms: [.macOS(.v26), .iOS(.v26)],
    products: [
        .library(name: "LMKernels", targets: ["LMKernels"]),
        .library(name: "LMKernelsReference", targets: ["LMKernelsReference"]),
        // All C targets in one shared object, for C and Python.
        .library(
            name: "lmkernels", type: .dynamic,
            targets: [
                "CLMKCore", "CLMKCrossEntropy", "CLMKSoftmax", "CLMKLinearAttention",
                "CLMKDeltaRule",
            ]),
        .executable(name: "lmk", targets: ["lmk"]),
    ],
    dependencies: [
        // For the tool only: the libraries depend on nothing but the OpenMP runtime.
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.5.0")
    ],
    targets: [
        // MARK: C kernels
        .target(
            name: "CLMKCore",
            path: "CSources/CLMKCore",
            cSettings: [.headerSearchPath("internal")],
            linkerSettings: [.linkedLibrary("omp5", .when(platforms: [.linux]))]
        ),
        .target(
            name: "CLMKCrossEntropy",
            dependencies: ["CLMKCore"],
            path: "CSources/CLMKCrossEntropy",
            cSettings: familySettings
        ),
        .target(
            name: "CLMKSoftmax",
            dependencies: ["CLMKCore"],
            path: "CSources/CLMKSoftmax",
            cSettings: familySettings
        ),
        .target(
            name: "CLMKLinearAttention",
            dependencies: ["CLMKCore"],
            path: "CSources/CLMKLinearAttention",
            cSettings: tokenFamilySettings
        ),
        .target(
            name: "CLMKDeltaRule",
            dependencies: ["CLMKCore", "CLMKLinearAttention"],
            path: "CSources/CLMKDeltaRule",
            cSettings: tokenFamilySettings
        ),

        // MARK: Swift
        .target(
            name: "LMKernels",
            dependencies: families,
            swiftSettings: swiftSettings
        ),
        .target(name: "LMKernelsReference", swiftSettings: swiftSettings),
        .executableTarget(
            name: "lmk",
            dependencies: [
                "LMKernels", "LMKernelsReference",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: swiftSettings
        ),

        // MARK: Tests
        .testTarget(
            name: "LMKernelsTests",
            dependencies: ["LMKernels", "LMKernelsReference", "lmk"],
            swiftSettings: swiftSettings
        ),
        .testTarget(name: "LMKernelsReferenceTests", dependencies: ["LMKernelsReference"]),
        // Pointers and descriptors as C has them: nothing here is memory safe.
        .testTarget(
            name: "EntryPointTests", dependencies: families),
    ],
    swiftLanguageModes: [.v6],
    cLanguageStandard: .gnu11
)

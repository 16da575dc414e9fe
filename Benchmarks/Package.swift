// swift-tools-version: 6.2
import PackageDescription

// Compares the kernels with OpenBLAS and with plain loops: `make bench` in the folder above.

let package = Package(
    name: "Benchmarks",
    platforms: [.macOS(.v26)],
    dependencies: [
        .package(name: "swift-lm-kernels", path: ".."),
        // Without its traits: nothing is put between the program and malloc or the Swift runtime.
        .package(url: "https://github.com/ordo-one/benchmark", from: "1.38.0", traits: []),
    ],
    targets: [
        .executableTarget(
            name: "Kernels",
            dependencies: [
                .target(name: "COpenBLAS", condition: .when(platforms: [.linux])),
                .product(name: "LMKernels", package: "swift-lm-kernels"),
                .product(name: "Benchmark", package: "benchmark"),
            ],
            path: "Kernels",
            plugins: [.plugin(name: "BenchmarkPlugin", package: "benchmark")]
        ),
        .systemLibrary(
            name: "COpenBLAS", path: "COpenBLAS", pkgConfig: "openblas",
            providers: [.apt(["libopenblas-dev"])]
        ),
    ],
    swiftLanguageModes: [.v6]
)

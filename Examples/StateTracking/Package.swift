// swift-tools-version: 6.2
import PackageDescription

let package = Package(
    name: "StateTracking",
    platforms: [.macOS(.v26)],
    dependencies: [.package(name: "swift-lm-kernels", path: "../..")],
    targets: [
        .executableTarget(
            name: "StateTracking",
            dependencies: [
                .product(name: "LMKernels", package: "swift-lm-kernels"),
                .product(name: "LMKernelsReference", package: "swift-lm-kernels"),
            ]
        )
    ],
    swiftLanguageModes: [.v6]
)

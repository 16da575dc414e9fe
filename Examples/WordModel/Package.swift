// swift-tools-version: 6.2
import PackageDescription

let package = Package(
    name: "WordModel",
    platforms: [.macOS(.v26)],
    dependencies: [
        .package(name: "swift-lm-kernels", path: "../.."),
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.5.0"),
    ],
    targets: [
        .executableTarget(
            name: "WordModel",
            dependencies: [
                .product(name: "LMKernels", package: "swift-lm-kernels"),
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ]
        ),
        .testTarget(name: "WordModelTests", dependencies: ["WordModel"]),
    ],
    swiftLanguageModes: [.v6]
)

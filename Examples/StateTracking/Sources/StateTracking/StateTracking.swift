import Foundation
import LMKernels

/// Prints what the delta rule can keep track of, and draws it:
///
///     StateTracking [PICTURE.svg]
@main
struct StateTracking {
    static func main() throws {
        let start = ContinuousClock.now
        let picture = CommandLine.arguments.dropFirst().first ?? "state-tracking.svg"
        print(
            """
            One layer of the delta rule in float32, nothing trained; \(Threads.count()) threads, \
            \(InstructionSet.current.rawValue)

            """)
        try printLongRuns()
        let contests = [
            try Contest(
                .parity, rates: [1 / 64, 1 / 16, 1 / 8, 0.25, 0.375, 0.5, 0.75, 1].map { [$0] }),
            try Contest(.modulo3, rates: pairs([0.125, 0.25, 0.5, 1])),
            try Contest(
                .permutations, rates: [0.0625, 0.125, 0.25, 0.375, 0.5, 0.75, 1].map { [$0] }),
        ]
        print(contests)
        let recall = try Recall()
        print(recall)
        let collinear = try Collinear()
        print(collinear)
        let panels =
            contests.map(panel)
            + [panel(recall), panel(collinear, rate: 1), panel(collinear, rate: 2)]
        try Picture(panels: panels).svg.write(toFile: picture, atomically: true, encoding: .utf8)
        let seconds = (ContinuousClock.now - start) / .seconds(1)
        print("\n\(picture) shows it. All in " + String(format: "%.1f s", seconds))
    }

    private static func pairs(_ rates: [Float]) -> [[Float]] {
        rates.flatMap { first in rates.map { [first, $0] } }
    }
}

// MARK: - Tables

extension StateTracking {
    private static func printLongRuns() throws {
        print("Reflections, beta = 2: right answers, and how far outputs are from 0, 1 and -1")
        for (task, tokens) in [
            (Task.parity, 100_000), (.modulo3, 100_000), (.permutations, 20_000),
        ] {
            for form in [DeltaRule.Form.recurrent, .chunked] {
                let run = try LongRun(task, tokens: tokens, form: form)
                let right =
                    run.right == run.answers ? "all \(run.right)" : "\(run.right) of \(run.answers)"
                print(
                    "  \(padded(task.name, 10))\(padded("\(tokens) tokens", 15))"
                        + "\(padded("\(form)", 11))\(padded(right, 18))"
                        + String(format: "%.2g", run.drift))
            }
        }
    }

    private static func print(_ contests: [Contest]) {
        print(
            """

            Right answers in percent after so many tokens. Rates up to 1 have a linear read-out fitted by least
            squares to each length; that of reflections is fixed.
            """)
        let lengths = Contest.lengths.map { String(format: "%7d", $0) }.joined()
        print(padded("", 33) + lengths)
        for contest in contests {
            let chance = 100 / Double(contest.task.classes)
            print(String(format: "%@, chance %.1f", contest.task.name, chance))
            row("  1 head, beta = 2", contest.reflections)
            row("  1 head, beta = 1, fitted", contest.projections)
            row("  \(contest.heads) heads, beta <= 1, fitted", contest.manyHeads)
        }
    }

    private static func print(_ recall: Recall) {
        print(
            """

            Overwrite recall in percent, keys and values 64 wide, every key written twice
            """)
        print(padded("pairs", 33) + Recall.pairs.map { String(format: "%7d", $0) }.joined())
        row("  additive", recall.additive)
        row("  delta rule, beta = 1", recall.delta)
        row("  additive, best decay", recall.bestAdditive)
        row("  delta rule, best beta and decay", recall.bestDelta)
    }

    private static func print(_ collinear: Collinear) {
        print(
            """

            Largest error over 512 tokens, of the largest output, for keys within an angle of one direction
            """)
        print(
            padded("angle", 8) + padded("recurrent, beta", 36) + "chunked, beta\n" + padded("", 8)
                + String(repeating: Collinear.rates.map { padded("\($0)", 9) }.joined(), count: 2))
        for (i, angle) in Collinear.angles.enumerated() {
            let errors = (collinear.recurrent[i] + collinear.chunked[i]).map {
                padded(String(format: "%.1e", $0), 9)
            }
            print(padded(String(format: "%g", angle), 8) + errors.joined())
        }
    }

    private static func row(_ name: String, _ shares: [Double]) {
        print(padded(name, 33) + shares.map { String(format: "%7.1f", 100 * $0) }.joined())
    }

    private static func padded(_ text: String, _ width: Int) -> String {
        text.padding(toLength: max(width, text.count), withPad: " ", startingAt: 0)
    }

    private static func print(_ text: String) { Swift.print(text) }
}

// MARK: - The picture

extension StateTracking {
    private static let percent = [0, 25, 50, 75, 100].map { (Double($0), "\($0)") }

    private static func panel(_ contest: Contest) -> Picture.Panel {
        let ends = [1, Double(Contest.lengths.last!)]
        let chance = 100 / Double(contest.task.classes)
        return .init(
            title: contest.task.title, xLabel: "tokens", yLabel: "right, %",
            lines: [
                line("1 head, beta = 2", Contest.lengths, contest.reflections, Picture.blue),
                line(
                    "\(contest.heads) heads, beta ≤ 1", Contest.lengths, contest.manyHeads,
                    Picture.orange),
                line("1 head, beta = 1", Contest.lengths, contest.projections, Picture.green),
                .init(
                    name: "chance", points: ends.map { ($0, chance) }, color: Picture.gray,
                    isDashed: true),
            ],
            xTicks: Contest.lengths.filter { $0.trailingZeroBitCount % 2 == 0 }.map {
                (Double($0), "\($0)")
            }, yTicks: percent, xLimits: ends[0]...ends[1], yLimits: 0...105,
            namesAt: (0.5, 1.2))
    }

    private static func panel(_ recall: Recall) -> Picture.Panel {
        .init(
            title: "recall of keys that were overwritten", xLabel: "keys, each written twice",
            yLabel: "right, %",
            lines: [
                line(
                    "delta rule, best beta and decay", Recall.pairs, recall.bestDelta, Picture.navy),
                line("delta rule, beta = 1", Recall.pairs, recall.delta, Picture.blue),
                line("additive, best decay", Recall.pairs, recall.bestAdditive, Picture.orange),
                line("additive", Recall.pairs, recall.additive, Picture.green),
            ],
            xTicks: [8, 16, 32, 64, 128, 256].map { (Double($0), "\($0)") }, yTicks: percent,
            xLimits: 8...256, yLimits: 0...105, namesAt: (0.03, 8.4))
    }

    private static func panel(_ collinear: Collinear, rate: Float) -> Picture.Panel {
        let column = Collinear.rates.firstIndex(of: rate)!
        func line(_ name: String, _ errors: [[Double]], _ color: String) -> Picture.Line {
            .init(
                name: name, points: zip(Collinear.angles, errors).map { ($0, $1[column]) },
                color: color)
        }
        return .init(
            title: String(format: "nearly collinear keys, beta = %g", rate),
            xLabel: "degrees between keys and one direction",
            yLabel: "largest error / largest output",
            lines: [
                line("chunked", collinear.chunked, Picture.orange),
                line("recurrent", collinear.recurrent, Picture.blue),
            ],
            xTicks: [0.1, 1, 10, 90].map { ($0, String(format: "%g", $0)) },
            yTicks: (-7 ... -4).map { (pow(10, Double($0)), "1e\($0)") }, xLimits: 0.1...90,
            yLimits: 1e-7...1e-4, hasLogarithmicY: true)
    }

    private static func line(
        _ name: String, _ x: [Int], _ shares: [Double], _ color: String
    ) -> Picture.Line {
        .init(
            name: name, points: zip(x, shares).map { (Double($0), 100 * $1) }, color: color)
    }
}

import LMKernels

/// What a layer has to say about one long sequence.
struct LongRun {
    var task: Task
    var tokens: Int
    var form: DeltaRule.Form
    /// Answers that are right, of all.
    var right: Int
    var answers: Int
    /// How far an output is from the 0, 1 or -1 that it stands for, at most.
    var drift: Float

    /// With reflections.
    init(_ task: Task, tokens: Int, form: DeltaRule.Form) throws {
        (self.task, self.tokens, self.form) = (task, tokens, form)
        var generator = SplitMix64(seed: 1)
        let inputs = task.sequence(tokens, using: &generator)
        let output = try Layer.outputs(task, inputs, rate: 2, form: form)
        let size = task.width * task.width
        let found = (0..<tokens).flatMap { task.read(output[$0 * size..<($0 + 1) * size]) }
        let expected = task.answers(inputs)
        answers = expected.count
        right = zip(found, expected).count { $0 == $1 }
        drift = output.map { ($0.magnitude - $0.magnitude.rounded()).magnitude }.max() ?? 0
    }
}

/// The share of answers that are right over the length of a sequence, by three contenders.
struct Contest {
    static let lengths = (0...8).map { 1 << $0 }

    var task: Task
    /// One head of beta = 2 and the read-out that its author knows.
    var reflections: [Double] = []
    /// One head of the same keys with beta = 1, read by what is fitted to just that length.
    var projections: [Double] = []
    /// The same with many heads of rates up to 1, all of them read.
    var manyHeads: [Double] = []
    /// How many.
    var heads: Int

    /// - Parameter rates: Of the many heads; the last are 1.
    init(_ task: Task, rates: [[Float]]) throws {
        self.task = task
        heads = rates.count
        var generator = SplitMix64(seed: 2)
        let longest = Self.lengths.last!
        let sequences = (0..<5120).map { _ in task.sequence(longest, using: &generator) }
        let expected = sequences.map(task.answers)
        let two = [[Float](repeating: 2, count: task.steps)]
        var found = Self.lengths.map { _ in (reflections: [[Float]](), heads: [[Float]]()) }
        // As many at a time as need little memory.
        for start in stride(from: 0, to: sequences.count, by: 256) {
            let some = Array(sequences[start..<start + 256])
            let reflected = try Layer(task, rates: two).states(some, after: Self.lengths)
            let shrunk = try Layer(task, rates: rates).states(some, after: Self.lengths)
            for i in Self.lengths.indices {
                found[i].reflections += reflected[i].split(into: 256)
                found[i].heads += shrunk[i].split(into: 256)
            }
        }
        for (length, found) in zip(Self.lengths, found) {
            let answers = expected.map {
                Array($0[(length - 1) * task.places..<length * task.places])
            }
            reflections.append(
                share(found.reflections.map { task.read($0[...]) }, answers))
            let last = found.heads.map { Array($0.suffix(task.width * task.width)) }
            projections.append(fitted(last, answers))
            manyHeads.append(fitted(found.heads, answers))
        }
    }

    /// The share that is right of a fifth of the sequences, by a linear read-out of S that least
    /// squares find from the others, or by the most frequent answer if that does better on those.
    private func fitted(_ states: [[Float]], _ answers: [[Int]]) -> Double {
        let count = states.count * 4 / 5
        let readOut = LinearReadOut(
            Array(states[..<count]), Array(answers[..<count]), places: task.places,
            classes: task.classes)
        let found = states.map(readOut.answers)
        let usual = (0..<task.places).map { place in
            (0..<task.classes).max { x, y in
                answers[..<count].count { $0[place] == x }
                    < answers[..<count].count { $0[place] == y }
            }!
        }
        let constant = Array(repeating: usual, count: states.count)
        func right(_ found: [[Int]], _ range: Range<Int>) -> Double {
            share(Array(found[range]), Array(answers[range]))
        }
        let isBetter = right(constant, 0..<count) > right(found, 0..<count)
        return right(isBetter ? constant : found, count..<states.count)
    }

    private func share(_ found: [[Int]], _ expected: [[Int]]) -> Double {
        let right = zip(found, expected).map { zip($0, $1).count { $0 == $1 } }.reduce(0, +)
        return Double(right) / Double(expected.count * task.places)
    }
}

extension [Float] {
    fileprivate func split(into count: Int) -> [[Float]] {
        let size = self.count / count
        return (0..<count).map { Array(self[$0 * size..<($0 + 1) * size]) }
    }
}

/// What log-decays of a random problem are like.
enum LogDecays: CaseIterable {
    /// 0 to -0.1.
    case mild
    /// About -2.5.
    case strong
    /// Few or many resets among mild ones.
    case resets
    /// From 0 to -infinity.
    case mixed
    /// -20: what they leave is next to nothing, and so is their gradient.
    case weakest

    func draw(_ count: Int, using random: inout SplitMix64) -> [Float] {
        let share = random.pick([2, 8, 64])
        return (0..<count).map { _ in
            let mild = (random.unit() + 1) * -0.05
            return switch self {
            case .mild: mild
            case .strong: -2.5 + random.unit()
            case .resets: random.once(in: share) ? random.pick([-.infinity, -1e4]) : mild
            case .mixed: random.pick([0, -0.0, -1e-3, -1, -20, -1e4, -.infinity, mild])
            case .weakest: -20
            }
        }
    }
}

extension SplitMix64 {
    /// Where a few packed sequences begin and end, some of them empty.
    mutating func offsets(tokens: Int) -> [Int] {
        var inner: [Int] = []
        for _ in 0..<below(6) {
            inner.append(once(in: 4) ? pick([0, tokens]) : below(tokens + 1))
            if once(in: 4) { inner.append(inner.last!) }
        }
        return [0] + inner.sorted() + [tokens]
    }
}

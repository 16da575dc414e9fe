import Foundation

/// Line charts in a grid, written as SVG.
struct Picture {
    struct Line {
        var name: String
        var points: [(x: Double, y: Double)]
        var color: String
        var isDashed = false
    }

    struct Panel {
        var title: String
        var xLabel: String
        var yLabel: String
        var lines: [Line]
        /// With their texts.
        var xTicks: [(Double, String)]
        var yTicks: [(Double, String)]
        /// Of both axes; logarithmic ones need limits above 0.
        var xLimits: ClosedRange<Double>
        var yLimits: ClosedRange<Double>
        var hasLogarithmicY = false
        /// Where its names begin: a share of the width, and lines of text from the top.
        var namesAt = (x: 0.03, y: 0.0)
    }

    static let (navy, blue, orange) = ("#12305c", "#2b83d6", "#e07b00")
    static let (green, gray) = ("#2c8c3c", "#888888")

    var panels: [Panel]
    private let columns = 3
    /// Of a panel.
    private let width = 330.0
    private let height = 270.0

    var svg: String {
        let rows = (panels.count + columns - 1) / columns
        let (w, h) = (Int(width) * columns, Int(height) * rows)
        var text = """
            <svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 \(w) \(h)" width="\(w)" \
            height="\(h)" font-family="Helvetica, Arial, sans-serif" font-size="11">
            <rect width="\(w)" height="\(h)" fill="white"/>

            """
        for (i, panel) in panels.enumerated() {
            let (x, y) = (i % columns * Int(width), i / columns * Int(height))
            text += "<g transform=\"translate(\(x) \(y))\">\n\(svg(panel))</g>\n"
        }
        return text + "</svg>\n"
    }

    private func svg(_ panel: Panel) -> String {
        let (left, right, top, bottom) = (52.0, width - 14, 30.0, height - 44)
        // All x are logarithmic.
        func share(_ value: Double, _ limits: ClosedRange<Double>, _ isLogarithmic: Bool) -> Double
        {
            let f: (Double) -> Double = isLogarithmic ? { log($0) } : { $0 }
            return (f(value) - f(limits.lowerBound))
                / (f(limits.upperBound) - f(limits.lowerBound))
        }
        func x(_ value: Double) -> Double {
            left + (right - left) * share(value, panel.xLimits, true)
        }
        func y(_ value: Double) -> Double {
            bottom - (bottom - top) * share(value, panel.yLimits, panel.hasLogarithmicY)
        }
        let middle = (left + right) / 2
        var text = label(panel.title, middle, 18, "font-size=\"13\" font-weight=\"bold\"")
        for (value, name) in panel.xTicks {
            text += segment(x(value), top, x(value), bottom, "stroke=\"#e4e4e4\"")
            text += label(name, x(value), bottom + 15)
        }
        for (value, name) in panel.yTicks {
            text += segment(left, y(value), right, y(value), "stroke=\"#e4e4e4\"")
            text += label(name, left - 6, y(value) + 4, anchor: "end")
        }
        text += segment(left, bottom, right, bottom, "stroke=\"#333\"")
        text += segment(left, top, left, bottom, "stroke=\"#333\"")
        text += label(panel.xLabel, middle, bottom + 33)
        let turn = "transform=\"rotate(-90 13 \((top + bottom) / 2))\""
        text += label(panel.yLabel, 13, (top + bottom) / 2, turn)
        for (i, line) in panel.lines.enumerated() {
            let dashes = line.isDashed ? " stroke-dasharray=\"5 4\"" : ""
            let style = "stroke=\"\(line.color)\" stroke-width=\"2\"\(dashes)"
            let points = line.points.map { number(x($0.x)) + "," + number(y($0.y)) }
            text +=
                "<polyline fill=\"none\" \(style) points=\"\(points.joined(separator: " "))\"/>\n"
            let at = top + 14 + 15 * (panel.namesAt.y + Double(i))
            let nameX = left + (right - left) * panel.namesAt.x
            text += segment(nameX, at - 4, nameX + 22, at - 4, style)
            text += label(line.name, nameX + 28, at, anchor: "start")
        }
        return text
    }

    private func number(_ x: Double) -> String { String(format: "%.1f", x) }

    private func segment(
        _ x1: Double, _ y1: Double, _ x2: Double, _ y2: Double, _ style: String
    ) -> String {
        "<line x1=\"\(number(x1))\" y1=\"\(number(y1))\" x2=\"\(number(x2))\" "
            + "y2=\"\(number(y2))\" \(style)/>\n"
    }

    private func label(
        _ text: String, _ x: Double, _ y: Double, _ style: String = "", anchor: String = "middle"
    ) -> String {
        let safe = text.replacingOccurrences(of: "&", with: "&amp;")
            .replacingOccurrences(of: "<", with: "&lt;")
        return "<text x=\"\(number(x))\" y=\"\(number(y))\" text-anchor=\"\(anchor)\" \(style)>"
            + "\(safe)</text>\n"
    }
}

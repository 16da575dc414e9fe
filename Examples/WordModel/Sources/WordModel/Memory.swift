import Foundation

/// What the system says of this process's memory, in bytes.
enum Memory {
    #if os(Linux)
        static var resident: Int { status("VmRSS:") }
        static var peak: Int { status("VmHWM:") }

        /// A line of /proc/self/status, which is in kilobytes. Not getrusage, whose peak is that
        /// of `swift run` when that became this process.
        private static func status(_ key: String) -> Int {
            let text = (try? String(contentsOfFile: "/proc/self/status", encoding: .utf8)) ?? ""
            let line = text.split(separator: "\n").first { $0.hasPrefix(key) } ?? ""
            return (Int(line.filter(\.isNumber)) ?? 0) * 1024
        }
    #else
        /// The peak: what is in use now is not as easily had.
        static var resident: Int { peak }

        static var peak: Int {
            var usage = rusage()
            getrusage(RUSAGE_SELF, &usage)
            return usage.ru_maxrss
        }
    #endif
}

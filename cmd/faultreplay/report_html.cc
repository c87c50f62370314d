// The report as one HTML file: its plots are SVG, drawn here.
#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "cmd/faultreplay/report.h"

namespace postcopy {
namespace {

constexpr double kWidth = 860;
constexpr double kHeight = 300;
constexpr double kLeft = 70;
constexpr double kBottom = 40;
// Points of one line; more would not be seen.
constexpr size_t kPointsMax = 1500;

constexpr std::array<absl::string_view, 8> kColours = {
    "#1f77b4", "#d62728", "#2ca02c", "#9467bd",
    "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f"};

absl::string_view ColourOf(size_t index) {
  return kColours[index % kColours.size()];
}

std::string Escaped(absl::string_view text) {
  return absl::StrReplaceAll(
      text, {{"&", "&amp;"}, {"<", "&lt;"}, {">", "&gt;"}, {"\"", "&quot;"}});
}

// From a value to a place, linear or by its logarithm.
class Axis {
 public:
  Axis(double low, double high, double from, double to, bool log)
      : low_(log ? std::log10(low) : low),
        high_(log ? std::log10(high) : high),
        from_(from),
        to_(to),
        log_(log) {
    if (high_ <= low_) high_ = low_ + 1;
  }

  double At(double value) const {
    const double v = log_ ? std::log10(std::max(value, 1e-9)) : value;
    const double share = std::clamp((v - low_) / (high_ - low_), 0.0, 1.0);
    return from_ + share * (to_ - from_);
  }
  // Where to write numbers: powers of ten, or five steps.
  std::vector<double> Ticks() const {
    std::vector<double> ticks;
    if (log_) {
      for (double p = std::ceil(low_); p <= high_; ++p) {
        ticks.push_back(std::pow(10, p));
      }
    } else {
      for (int i = 0; i <= 5; ++i) {
        ticks.push_back(low_ + (high_ - low_) * i / 5);
      }
    }
    return ticks;
  }

 private:
  double low_, high_, from_, to_;
  bool log_;
};

std::string Text(double x, double y, absl::string_view anchor,
                 absl::string_view text) {
  return absl::StrFormat(
      "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\">%s</text>\n", x, y,
      std::string(anchor), Escaped(text));
}

std::string Line(double x1, double y1, double x2, double y2,
                 absl::string_view colour) {
  return absl::StrFormat(
      "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" "
      "stroke=\"%s\"/>\n",
      x1, y1, x2, y2, std::string(colour));
}

std::string Rect(double x, double y, double width, double height,
                 absl::string_view colour, absl::string_view title) {
  return absl::StrFormat(
      "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" "
      "fill=\"%s\"><title>%s</title></rect>\n",
      x, y, std::max(width, 0.5), height, std::string(colour), Escaped(title));
}

std::string Plot(absl::string_view id, absl::string_view content,
                 double height = kHeight) {
  return absl::StrFormat(
      "<svg id=\"%s\" viewBox=\"0 0 %.0f %.0f\" role=\"img\">\n%s</svg>\n",
      std::string(id), kWidth, height, std::string(content));
}

std::string AxesOf(const Axis& x, const Axis& y, absl::string_view x_name,
                   absl::string_view y_name) {
  const double floor = kHeight - kBottom;
  std::string svg;
  for (double tick : x.Ticks()) {
    svg += Line(x.At(tick), 10, x.At(tick), floor, "#e4e4e4");
    svg +=
        Text(x.At(tick), floor + 15, "middle", absl::StrFormat("%.4g", tick));
  }
  for (double tick : y.Ticks()) {
    svg += Line(kLeft, y.At(tick), kWidth - 10, y.At(tick), "#e4e4e4");
    svg +=
        Text(kLeft - 6, y.At(tick) + 4, "end", absl::StrFormat("%.3g", tick));
  }
  svg += Text((kLeft + kWidth) / 2, kHeight - 6, "middle", x_name);
  svg += Text(kLeft, 10, "start", y_name);
  return svg;
}

std::string Polyline(const std::vector<std::pair<double, double>>& points,
                     absl::string_view colour) {
  std::string at;
  for (const auto& [x, y] : points)
    absl::StrAppendFormat(&at, "%.1f,%.1f ", x, y);
  return absl::StrCat("<polyline fill=\"none\" stroke-width=\"1.6\" stroke=\"",
                      colour, "\" points=\"", at, "\"/>\n");
}

std::string Legend(const ReplayReport& report) {
  std::string html = "<p class=\"legend\">";
  for (size_t i = 0; i < report.backends.size(); ++i) {
    absl::StrAppend(&html, "<span style=\"color:", ColourOf(i), "\">&#9632; ",
                    Escaped(report.backends[i].name), "</span> ");
  }
  return html + "</p>\n";
}

double MicrosOf(int64_t nanos) { return static_cast<double>(nanos) / 1e3; }
double MillisOf(int64_t nanos) { return static_cast<double>(nanos) / 1e6; }

// The latencies of all runs of each backend, sorted.
std::vector<std::vector<int64_t>> AllLatencies(const ReplayReport& report) {
  std::vector<std::vector<int64_t>> all;
  for (const BackendRuns& runs : report.backends) {
    std::vector<Wait> waits;
    for (const RunResult& run : runs.runs) {
      waits.insert(waits.end(), run.waits.begin(), run.waits.end());
    }
    all.push_back(SortedLatencies(waits));
  }
  return all;
}

std::string Cdf(const ReplayReport& report, absl::string_view id) {
  const std::vector<std::vector<int64_t>> all = AllLatencies(report);
  double low = 1e12;
  double high = 1;
  for (const auto& sorted : all) {
    if (sorted.empty()) continue;
    low = std::min(low, MicrosOf(sorted.front()));
    high = std::max(high, MicrosOf(sorted.back()));
  }
  const Axis x(std::max(std::min(low, high), 0.1), high, kLeft, kWidth - 10,
               true);
  const Axis y(0, 1, kHeight - kBottom, 15, false);
  std::string svg =
      AxesOf(x, y, "latency of a touch that faulted, us", "share of faults");
  for (size_t i = 0; i < all.size(); ++i) {
    std::vector<std::pair<double, double>> points;
    const size_t step = all[i].size() / kPointsMax + 1;
    for (size_t k = 0; k < all[i].size(); k += step) {
      points.emplace_back(x.At(MicrosOf(all[i][k])),
                          y.At(static_cast<double>(k + 1) /
                               static_cast<double>(all[i].size())));
    }
    if (!all[i].empty()) {
      points.emplace_back(x.At(MicrosOf(all[i].back())), y.At(1));
    }
    svg += Polyline(points, ColourOf(i));
  }
  return Plot(absl::StrCat("cdf", id), svg);
}

// The last run of one backend: each fault a dot, residency a line.
std::string Timeline(const BackendRuns& runs, size_t index,
                     absl::string_view id) {
  if (runs.runs.empty()) return "";
  const RunResult& run = runs.runs.back();
  double longest = 10;
  for (const Wait& wait : run.waits) {
    longest = std::max(longest, MicrosOf(wait.latency_ns));
  }
  const Axis x(0, std::max(MillisOf(run.duration_ns), 0.001), kLeft,
               kWidth - 10, false);
  const Axis y(1, longest, kHeight - kBottom, 15, true);
  const Axis there(0,
                   static_cast<double>(std::max<uint64_t>(run.pages_total, 1)),
                   kHeight - kBottom, 15, false);
  std::string svg =
      AxesOf(x, y, "ms since the first touch",
             "us of each fault; grey: share of RAM that is there");
  std::vector<std::pair<double, double>> points;
  for (const ResidencyPoint& point : run.residency) {
    points.emplace_back(x.At(MillisOf(point.time_ns)),
                        there.At(static_cast<double>(point.pages)));
  }
  svg += Polyline(points, "#999999");
  const size_t step = run.waits.size() / kPointsMax + 1;
  for (size_t i = 0; i < run.waits.size(); i += step) {
    absl::StrAppendFormat(
        &svg, "<circle cx=\"%.1f\" cy=\"%.1f\" r=\"1.3\" fill=\"%s\"/>\n",
        x.At(MillisOf(run.waits[i].start_ns)),
        y.At(MicrosOf(run.waits[i].latency_ns)), std::string(ColourOf(index)));
  }
  return absl::StrCat("<h4>", Escaped(runs.name), "</h4>\n",
                      Plot(absl::StrCat("timeline", id, "-", index), svg));
}

// Bars of the mean time of each stage, one below the other.
std::string Stages(const ReplayReport& report, absl::string_view id) {
  constexpr double kRow = 34;
  double longest = 0;
  std::vector<std::pair<std::string, const RunResult*>> rows;
  const auto mean = [](const StageTime& stage) {
    return stage.count == 0 ? 0.0
                            : static_cast<double>(stage.total_us) /
                                  static_cast<double>(stage.count);
  };
  for (const BackendRuns& runs : report.backends) {
    if (runs.runs.empty() || runs.runs.back().backend.stages.empty()) continue;
    double sum = 0;
    for (const StageTime& s : runs.runs.back().backend.stages) sum += mean(s);
    longest = std::max(longest, sum);
    rows.emplace_back(runs.name, &runs.runs.back());
  }
  if (rows.empty()) return "<p>No backend here has stages.</p>\n";
  const Axis x(0, longest, 200, kWidth - 60, false);
  std::string svg;
  for (size_t row = 0; row < rows.size(); ++row) {
    const double top = 8 + kRow * static_cast<double>(row);
    svg += Text(194, top + 16, "end", rows[row].first);
    double sum = 0;
    const std::vector<StageTime>& stages = rows[row].second->backend.stages;
    for (size_t i = 0; i < stages.size(); ++i) {
      const double value = mean(stages[i]);
      svg +=
          Rect(x.At(sum), top, x.At(sum + value) - x.At(sum), 24, ColourOf(i),
               absl::StrFormat("%s: mean %.1f us", stages[i].name, value));
      sum += value;
    }
    svg +=
        Text(x.At(sum) + 4, top + 16, "start", absl::StrFormat("%.0f us", sum));
  }
  const double height = 12 + kRow * static_cast<double>(rows.size());
  std::string html =
      Plot(absl::StrCat("stages", id), svg, height) + "<p class=\"legend\">";
  const std::vector<StageTime>& stages = rows[0].second->backend.stages;
  for (size_t i = 0; i < stages.size(); ++i) {
    absl::StrAppend(&html, "<span style=\"color:", ColourOf(i), "\">&#9632; ",
                    Escaped(stages[i].name), "</span> ");
  }
  return html + "</p>\n";
}

// p50 and p99 of each backend beside each other.
std::string Bars(const ReplayReport& report, absl::string_view id) {
  constexpr double kRow = 40;
  double longest = 1;
  for (const BackendRuns& runs : report.backends) {
    longest = std::max(longest, Summarize(runs).p99_us);
  }
  const Axis x(0, longest, 200, kWidth - 90, false);
  std::string svg;
  for (size_t i = 0; i < report.backends.size(); ++i) {
    const BackendSummary s = Summarize(report.backends[i]);
    const double top = 6 + kRow * static_cast<double>(i);
    svg += Text(194, top + 20, "end", s.name);
    const std::pair<absl::string_view, double> bars[] = {{"p50", s.p50_us},
                                                         {"p99", s.p99_us}};
    double at = top;
    for (const auto& [name, value] : bars) {
      const std::string label =
          absl::StrFormat("%s %.1f us", std::string(name), value);
      svg += Rect(200, at, x.At(value) - 200, 14, ColourOf(i), label);
      svg += Text(x.At(value) + 4, at + 11, "start", label);
      at += 16;
    }
  }
  return Plot(absl::StrCat("bars", id), svg,
              10 + kRow * static_cast<double>(report.backends.size()));
}

// One report; `index` makes the names of its plots its own.
std::string Section(const ReplayReport& report, size_t index) {
  const std::string id = absl::StrCat("-", index);
  std::string html = absl::StrCat(
      "<h2>", Escaped(report.title), "</h2>\n<p><code>",
      Escaped(report.command), "</code></p>\n<pre>",
      Escaped(ReportTable(report)), "</pre>\n<h3>Latency of faults</h3>\n",
      Cdf(report, id), Legend(report), "<h3>Side by side</h3>\n",
      Bars(report, id), "<h3>Where the time of a fault goes</h3>\n",
      Stages(report, id),
      "<h3>Faults and residency over time, last run of each</h3>\n");
  for (size_t i = 0; i < report.backends.size(); ++i) {
    html += Timeline(report.backends[i], i, id);
  }
  return html;
}

constexpr absl::string_view kStyle =
    "body{font:14px/1.45 system-ui,sans-serif;max-width:900px;margin:2em auto;"
    "padding:0 1em;color:#222}svg{width:100%;height:auto;border:1px solid "
    "#ddd}svg text{font:11px sans-serif;fill:#444}pre{overflow-x:auto;"
    "background:#f6f6f6;padding:.8em;font-size:11px}.legend span{margin-right:"
    "1em;white-space:nowrap}";

}  // namespace

std::string ReportsHtml(absl::Span<const ReplayReport> reports,
                        absl::Span<const BudgetLine> lines) {
  const std::string title =
      reports.size() == 1 ? reports[0].title : "Replays of page faults";
  std::string html = absl::StrCat(
      "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n",
      "<title>", Escaped(title), "</title>\n<style>", kStyle,
      "</style></head>\n<body>\n<h1>", Escaped(title), "</h1>\n");
  if (!lines.empty()) {
    absl::StrAppend(&html, "<pre id=\"budget\">", Escaped(BudgetTable(lines)),
                    "</pre>\n");
  }
  for (size_t i = 0; i < reports.size(); ++i) html += Section(reports[i], i);
  return html + "</body></html>\n";
}

}  // namespace postcopy

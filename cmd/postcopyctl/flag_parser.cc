#include "cmd/postcopyctl/flag_parser.h"

#include <cstddef>
#include <optional>
#include <utility>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/reflection.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace postcopy {
namespace {

// One argument that starts with "--", taken apart.
struct FlagArgument {
  std::string name;
  std::optional<std::string> value;
};

FlagArgument Split(absl::string_view text) {
  text = absl::StripPrefix(text, "--");
  size_t equals = text.find('=');
  FlagArgument argument;
  argument.name = absl::StrReplaceAll(text.substr(0, equals), {{"-", "_"}});
  if (equals != absl::string_view::npos) {
    argument.value = std::string(text.substr(equals + 1));
  }
  return argument;
}

// Completes --bool_name and --nobool_name with their values.
absl::CommandLineFlag* FindFlag(FlagArgument* argument) {
  absl::CommandLineFlag* flag = absl::FindCommandLineFlag(argument->name);
  if (flag != nullptr) {
    if (!argument->value.has_value() && flag->IsOfType<bool>()) {
      argument->value = "true";
    }
    return flag;
  }
  if (argument->value.has_value() || !absl::StartsWith(argument->name, "no")) {
    return nullptr;
  }
  flag = absl::FindCommandLineFlag(argument->name.substr(2));
  if (flag == nullptr || !flag->IsOfType<bool>()) return nullptr;
  argument->value = "false";
  return flag;
}

absl::Status SetFlag(absl::CommandLineFlag* flag, const std::string& value) {
  std::string error;
  if (flag->ParseFrom(value, &error)) return absl::OkStatus();
  // Abseil's own sentence ends with the cause after the last semicolon.
  size_t cause = error.rfind("; ");
  return absl::InvalidArgumentError(
      absl::StrCat("--", flag->Name(), "=", value, " cannot be understood",
                   cause == std::string::npos ? "" : ": ",
                   cause == std::string::npos ? "" : error.substr(cause + 2)));
}

}  // namespace

absl::StatusOr<CommandLine> ParseFlags(
    const std::vector<std::string>& arguments) {
  CommandLine result;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& text = arguments[i];
    if (text == "--help" || text == "-h") {
      result.help = true;
      continue;
    }
    if (text == "--") {
      result.arguments.insert(result.arguments.end(), arguments.begin() + i + 1,
                              arguments.end());
      break;
    }
    if (!absl::StartsWith(text, "-")) {
      result.arguments.push_back(text);
      continue;
    }
    FlagArgument argument = Split(text);
    absl::CommandLineFlag* flag =
        absl::StartsWith(text, "--") ? FindFlag(&argument) : nullptr;
    if (flag == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat("there is no flag ", text.substr(0, text.find('='))));
    }
    if (!argument.value.has_value()) {
      if (i + 1 == arguments.size()) {
        return absl::InvalidArgumentError(
            absl::StrCat(text, " needs a value: ", text, "=..."));
      }
      argument.value = arguments[++i];
    }
    absl::Status status = SetFlag(flag, *argument.value);
    if (!status.ok()) return status;
    result.flags.insert(std::string(flag->Name()));
  }
  return result;
}

}  // namespace postcopy

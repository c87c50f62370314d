#include "cmd/config/flag_config.h"

#include <google/protobuf/text_format.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <utility>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/flag.h"
#include "absl/flags/parse.h"
#include "absl/flags/reflection.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "dirtytrack/check.h"

ABSL_FLAG(std::string, config, "",
          "file with the configuration, a text proto; flags override it; "
          "empty: none");
ABSL_FLAG(bool, check_config, false,
          "say whether the configuration is right, and end");
ABSL_FLAG(bool, print_config, false,
          "print the configuration that is in effect, and end");

namespace postcopy {
namespace {

using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::TextFormat;

// About this process and not about what it does.
constexpr absl::string_view kOfTheProcess[] = {"config", "check_config",
                                               "print_config", "ready_fd"};

absl::CommandLineFlag* FlagOf(const FieldDescriptor* field) {
  absl::CommandLineFlag* flag = absl::FindCommandLineFlag(field->name());
  POSTCOPY_CHECK(flag != nullptr);
  return flag;
}

std::vector<const FieldDescriptor*> FieldsOf(const Message& message) {
  std::vector<const FieldDescriptor*> fields;
  const Descriptor* type = message.GetDescriptor();
  for (int i = 0; i < type->field_count(); ++i) {
    fields.push_back(type->field(i));
  }
  return fields;
}

bool IsText(const FieldDescriptor* field) {
  return field->cpp_type() == FieldDescriptor::CPPTYPE_STRING;
}

// The value of a field, as its flag takes it.
std::string ValueText(const Message& message, const FieldDescriptor* field,
                      int index) {
  const google::protobuf::Reflection* reflection = message.GetReflection();
  if (IsText(field)) {
    return field->is_repeated()
               ? reflection->GetRepeatedString(message, field, index)
               : reflection->GetString(message, field);
  }
  std::string text;
  TextFormat::PrintFieldValueToString(message, field, index, &text);
  return text;
}

// Adds or sets what a flag has.
void SetValue(const std::string& text, const FieldDescriptor* field,
              Message* message) {
  if (!IsText(field)) {
    // What the flag's type prints, the field's reads.
    POSTCOPY_CHECK(TextFormat::ParseFieldValueFromString(text, field, message));
  } else if (field->is_repeated()) {
    message->GetReflection()->AddString(message, field, text);
  } else {
    message->GetReflection()->SetString(message, field, text);
  }
}

// Abseil would read these again at each reload, and end the process if one has
// gone.
absl::Status CheckNamesNoOtherSource(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    absl::string_view name = argv[i];
    if (name == "--") break;
    if (!absl::ConsumePrefix(&name, "-")) continue;
    absl::ConsumePrefix(&name, "-");
    name = name.substr(0, name.find('='));
    if (name != "flagfile" && name != "fromenv" && name != "tryfromenv") {
      continue;
    }
    return absl::InvalidArgumentError(absl::StrCat(
        "--", name,
        " is not for a daemon: put its flags into a file for --config "
        "(postcopy.conf(5)), or on the command line"));
  }
  return absl::OkStatus();
}

std::unique_ptr<Message> FromFlags(const Message& type) {
  std::unique_ptr<Message> message(type.New());
  for (const FieldDescriptor* field : FieldsOf(type)) {
    const std::string text = FlagOf(field)->CurrentValue();
    if (!field->is_repeated()) {
      SetValue(text, field, message.get());
      continue;
    }
    for (absl::string_view piece :
         absl::StrSplit(text, ',', absl::SkipEmpty())) {
      SetValue(std::string(piece), field, message.get());
    }
  }
  return message;
}

// An element with a comma would be two.
absl::Status CheckElement(absl::string_view text) {
  if (!text.empty() && !absl::StrContains(text, ',')) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "an element must not be empty or have a comma: write [\"a\", \"b\"]");
}

absl::Status At(const ConfigFile& file, const FieldDescriptor* field, int index,
                absl::string_view why) {
  return absl::InvalidArgumentError(
      absl::StrCat(file.Where(field, index), ": ", field->name(), ": ", why));
}

absl::Status SetFlag(const ConfigFile& file, const FieldDescriptor* field,
                     const std::string& text) {
  std::string error;
  if (FlagOf(field)->ParseFrom(text, &error)) return absl::OkStatus();
  return At(file, field, field->is_repeated() ? 0 : -1, error);
}

// The flag's text for a repeated field.
absl::StatusOr<std::string> Joined(const ConfigFile& file,
                                   const FieldDescriptor* field) {
  std::vector<std::string> pieces;
  const int size =
      file.message().GetReflection()->FieldSize(file.message(), field);
  for (int i = 0; i < size; ++i) {
    pieces.push_back(ValueText(file.message(), field, i));
    if (absl::Status s = CheckElement(pieces.back()); !s.ok()) {
      return At(file, field, i, s.message());
    }
  }
  return absl::StrJoin(pieces, ",");
}

bool IsInFile(const ConfigFile& file, const FieldDescriptor* field) {
  const Message& message = file.message();
  return field->is_repeated()
             ? message.GetReflection()->FieldSize(message, field) > 0
             : message.GetReflection()->HasField(message, field);
}

absl::Status AsAWhole(const ConfigFile& file, const absl::Status& why) {
  if (file.path().empty()) return why;
  return absl::InvalidArgumentError(
      absl::StrCat(file.path(), ": ", why.message()));
}

std::map<std::string, std::string> FlagTexts(const Message& type) {
  std::map<std::string, std::string> texts;
  for (const FieldDescriptor* field : FieldsOf(type)) {
    texts[field->name()] = FlagOf(field)->CurrentValue();
  }
  return texts;
}

int Fail(absl::string_view why) {
  std::fprintf(stderr, "error: %s\n", std::string(why).c_str());
  return kWrongConfigCode;
}

}  // namespace

absl::Status FlagConfig::SetFromFile(const ConfigFile& file) const {
  for (const FieldDescriptor* field : FieldsOf(type_)) {
    if (!IsInFile(file, field)) continue;
    absl::StatusOr<std::string> text =
        field->is_repeated() ? Joined(file, field)
                             : ValueText(file.message(), field, -1);
    if (!text.ok()) return text.status();
    if (absl::Status s = SetFlag(file, field, *text); !s.ok()) return s;
  }
  return absl::OkStatus();
}

absl::Status FlagConfig::Check(const ConfigFile& file, bool together) const {
  for (const FlagCheck& check : checks_) {
    if (check.flag.empty() && !together) continue;
    const absl::Status status = check.check();
    if (status.ok()) continue;
    if (check.flag.empty()) return AsAWhole(file, status);
    const FieldDescriptor* field =
        type_.GetDescriptor()->FindFieldByName(std::string(check.flag));
    POSTCOPY_CHECK(field != nullptr);
    if (!IsInFile(file, field)) {
      return absl::InvalidArgumentError(
          absl::StrCat("--", check.flag, ": ", status.message()));
    }
    return At(file, field, field->is_repeated() ? 0 : -1, status.message());
  }
  return absl::OkStatus();
}

absl::Status FlagConfig::Apply(bool together) {
  const std::string path = absl::GetFlag(FLAGS_config);
  std::unique_ptr<ConfigFile> file = ConfigFile::Empty(type_);
  if (!path.empty()) {
    auto read = ConfigFile::Read(path, type_);
    if (!read.ok()) return read.status();
    file = *std::move(read);
  }
  for (const FieldDescriptor* field : FieldsOf(type_)) {
    std::string error;
    POSTCOPY_CHECK(
        FlagOf(field)->ParseFrom(FlagOf(field)->DefaultValue(), &error));
  }
  if (absl::Status s = SetFromFile(*file); !s.ok()) return s;
  // Once more, on top of the file: flags do not say whether somebody gave them.
  absl::ParseCommandLine(argc_, argv_);
  return Check(*file, together);
}

std::optional<int> FlagConfig::Load(int argc, char** argv) {
  argc_ = argc;
  argv_ = argv;
  if (absl::Status s = CheckNamesNoOtherSource(argc, argv); !s.ok()) {
    return Fail(s.message());
  }
  absl::ParseCommandLine(argc, argv);
  if (absl::GetFlag(FLAGS_check_config) && !Unmatched().empty()) {
    return Fail(absl::StrCat("flags and fields of ",
                             type_.GetDescriptor()->name(),
                             " differ: ", absl::StrJoin(Unmatched(), ", ")));
  }
  const bool print = absl::GetFlag(FLAGS_print_config);
  if (absl::Status s = Apply(!print); !s.ok()) return Fail(s.message());
  if (print) {
    std::fputs(Print().c_str(), stdout);
    return 0;
  }
  if (absl::GetFlag(FLAGS_check_config)) {
    std::puts("OK");
    return 0;
  }
  return std::nullopt;
}

absl::StatusOr<std::vector<std::string>> FlagConfig::Reload(
    const std::vector<std::string>& reloadable,
    std::vector<std::string>* waiting) {
  const auto before = FlagTexts(type_);
  std::map<std::string, std::string> after;
  absl::Status applied;
  {
    const absl::FlagSaver saver;
    applied = Apply(/*together=*/true);
    after = FlagTexts(type_);
  }
  if (!applied.ok()) return applied;
  std::vector<std::string> changed;
  waiting->clear();
  for (const auto& [name, text] : after) {
    if (before.at(name) == text) continue;
    if (std::find(reloadable.begin(), reloadable.end(), name) ==
        reloadable.end()) {
      waiting->push_back(name);
      continue;
    }
    std::string error;
    POSTCOPY_CHECK(absl::FindCommandLineFlag(name)->ParseFrom(text, &error));
    changed.push_back(name);
  }
  return changed;
}

std::string ReloadConfig(FlagConfig& config,
                         const std::vector<std::string>& reloadable) {
  std::vector<std::string> waiting;
  const auto changed = config.Reload(reloadable, &waiting);
  if (!changed.ok()) {
    return absl::StrCat(
        "keeps its configuration, because the new one is wrong: ",
        changed.status().message());
  }
  std::string text = "has read its configuration again";
  if (!changed->empty()) {
    absl::StrAppend(&text, "; changed: ", absl::StrJoin(*changed, ", "));
  }
  if (!waiting.empty()) {
    absl::StrAppend(&text,
                    "; waiting for a restart: ", absl::StrJoin(waiting, ", "));
  }
  return text;
}

std::string FlagConfig::Print() const {
  const std::unique_ptr<Message> message = FromFlags(type_);
  std::string text;
  POSTCOPY_CHECK(TextFormat::PrintToString(*message, &text));
  return text;
}

std::vector<std::string> FlagConfig::Unmatched() const {
  std::vector<std::string> unmatched;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    const bool of_the_process =
        std::find(std::begin(kOfTheProcess), std::end(kOfTheProcess), name) !=
        std::end(kOfTheProcess);
    // Abseil brings flags of its own, --flagfile and the like.
    if (of_the_process || flag->IsRetired() ||
        absl::StrContains(flag->Filename(), "absl/flags/") ||
        type_.GetDescriptor()->FindFieldByName(std::string(name)) != nullptr) {
      continue;
    }
    unmatched.push_back(absl::StrCat("--", name, " has no field"));
  }
  for (const FieldDescriptor* field : FieldsOf(type_)) {
    if (absl::FindCommandLineFlag(field->name()) == nullptr) {
      unmatched.push_back(absl::StrCat(field->name(), " has no flag"));
    }
  }
  std::sort(unmatched.begin(), unmatched.end());
  return unmatched;
}

}  // namespace postcopy

// completion: a script for bash, made from the tables of commands and flags.

#include <algorithm>
#include <string>
#include <vector>

#include "absl/flags/commandlineflag.h"
#include "absl/flags/reflection.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "cmd/postcopyctl/command.h"

namespace postcopy {
namespace {

// Values of flags that have few.
struct FlagValues {
  absl::string_view flag;
  absl::string_view values;
};
constexpr FlagValues kFlagValues[] = {
    {"--output", "table json"},
    {"--policy", "manual auto postcopy-only precopy-only"},
    {"--pull_order",
     "adaptive linear after-fault around-faults recently-dirtied"},
};

// bash splits words at "=", so a value is a word of its own behind that.
constexpr char kScript[] = R"(# bash completion of postcopyctl
_postcopyctl() {
  local word="${COMP_WORDS[COMP_CWORD]}" flag="" values
  if [[ "${word}" == "=" ]]; then
    flag="${COMP_WORDS[COMP_CWORD - 1]}"
    word=""
  elif ((COMP_CWORD > 1)) && [[ "${COMP_WORDS[COMP_CWORD - 1]}" == "=" ]]; then
    flag="${COMP_WORDS[COMP_CWORD - 2]}"
  fi
  case "${flag}" in
    "")
      if [[ "${word}" == -* ]]; then
        values="%s"
      elif ((COMP_CWORD == 1)); then
        values="%s"
      else
        return 0
      fi
      ;;
%s    *) return 0 ;;
  esac
  mapfile -t COMPREPLY < <(compgen -W "${values}" -- "${word}")
  if [[ "${COMPREPLY[*]}" == *= ]]; then compopt -o nospace 2> /dev/null || true; fi
}
complete -F _postcopyctl postcopyctl
)";

// "--source=", "--compress"; sorted.
std::vector<std::string> AllFlags() {
  std::vector<std::string> flags = {"--help"};
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (!absl::StrContains(flag->Filename(), "cmd/postcopyctl/")) continue;
    flags.push_back(
        absl::StrCat("--", name, flag->IsOfType<bool>() ? "" : "="));
  }
  std::sort(flags.begin(), flags.end());
  return flags;
}

std::string AllNames() {
  return absl::StrJoin(AllCommands(), " ",
                       [](std::string* out, const Command& command) {
                         absl::StrAppend(out, command.name);
                       });
}

std::string CasesOfValues() {
  std::string cases;
  for (const FlagValues& known : kFlagValues) {
    absl::StrAppend(&cases, "    ", known.flag, ") values=\"", known.values,
                    "\" ;;\n");
  }
  return cases;
}

}  // namespace

absl::Status ValidateCompletion(const Options&) { return absl::OkStatus(); }

absl::Status RunCompletion(const CommandContext& context) {
  *context.out << absl::StrFormat(kScript, absl::StrJoin(AllFlags(), " "),
                                  AllNames(), CasesOfValues());
  return absl::OkStatus();
}

}  // namespace postcopy

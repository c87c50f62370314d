// What libpostcopy_vmm.so shows to who is linked with it.

#include <elf.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstring>
#include <fstream>
#include <iterator>
#include <regex>
#include <set>
#include <string>
#include <vector>

namespace {

constexpr char kLibrary[] = "cmd/vmm_library/libpostcopy_vmm.so";
constexpr char kHeader[] = "cmd/vmm_library/postcopy_vmm.h";
// The version that the symbols are of is one too.
constexpr char kVersion[] = "POSTCOPY_VMM_1";

std::string Contents(const char* path) {
  std::ifstream file(path, std::ios::binary);
  EXPECT_TRUE(file.is_open()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

// The `index`th T from `offset` on.
template <typename T>
T At(const std::string& bytes, size_t offset, size_t index = 0) {
  T value;
  const size_t at = offset + index * sizeof(T);
  EXPECT_LE(at + sizeof(T), bytes.size());
  std::memcpy(&value, bytes.data() + at, sizeof(T));
  return value;
}

bool IsExported(const Elf64_Sym& symbol) {
  const int bind = ELF64_ST_BIND(symbol.st_info);
  return symbol.st_shndx != SHN_UNDEF && bind != STB_LOCAL;
}

// The names of the symbol table that the dynamic linker reads.
std::set<std::string> ExportsOf(const std::string& elf) {
  std::set<std::string> names;
  const auto header = At<Elf64_Ehdr>(elf, 0);
  for (size_t i = 0; i < header.e_shnum; ++i) {
    const auto section = At<Elf64_Shdr>(elf, header.e_shoff, i);
    if (section.sh_type != SHT_DYNSYM) continue;
    const auto strings = At<Elf64_Shdr>(elf, header.e_shoff, section.sh_link);
    for (size_t j = 0; j < section.sh_size / sizeof(Elf64_Sym); ++j) {
      const auto symbol = At<Elf64_Sym>(elf, section.sh_offset, j);
      if (!IsExported(symbol)) continue;
      names.insert(elf.c_str() + strings.sh_offset + symbol.st_name);
    }
  }
  return names;
}

// The functions that the header declares.
std::set<std::string> DeclaredIn(const std::string& header) {
  std::set<std::string> names;
  const std::regex function(R"(POSTCOPY_VMM_API[^;(]*?(postcopy_vmm_\w+)\()");
  for (std::sregex_iterator i(header.begin(), header.end(), function), end;
       i != end; ++i) {
    names.insert((*i)[1].str());
  }
  return names;
}

TEST(ExportsTest, AreTheFunctionsOfTheHeaderAndNothingElse) {
  std::set<std::string> expected = DeclaredIn(Contents(kHeader));
  EXPECT_GT(expected.size(), 20u);
  expected.insert(kVersion);
  EXPECT_EQ(ExportsOf(Contents(kLibrary)), expected);
}

}  // namespace

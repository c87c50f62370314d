// What the documentation quotes of the example is in the example.

#include <gtest/gtest.h>

#include <cstddef>
#include <fstream>
#include <iterator>
#include <string>

namespace {

std::string Contents(const char* path) {
  std::ifstream file(path);
  EXPECT_TRUE(file.is_open()) << path;
  return {std::istreambuf_iterator<char>(file), {}};
}

TEST(ExampleInDocsTest, EveryQuoteIsThere) {
  const std::string page = Contents("docs/attaching.md");
  const std::string example = Contents("cmd/vmm_library/example.c");
  const std::string begin = "```c\n";
  int quotes = 0;
  for (size_t at = page.find(begin); at != std::string::npos;
       at = page.find(begin, at)) {
    at += begin.size();
    const size_t end = page.find("```\n", at);
    ASSERT_NE(end, std::string::npos);
    const std::string quote = page.substr(at, end - at);
    EXPECT_NE(example.find(quote), std::string::npos) << quote;
    ++quotes;
  }
  EXPECT_EQ(quotes, 5);
}

}  // namespace

// Runs a fuzzer's target once for each file named on the command line: how an
// ordinary build, which has no fuzzing engine, tests a corpus. A target that
// finds a fault ends the process.
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iterator>
#include <string>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "no inputs: the corpus is empty\n");
    return 1;
  }
  for (int i = 1; i < argc; ++i) {
    // Whoever reads the log of a crash finds its input in the last line.
    std::fprintf(stderr, "%s\n", argv[i]);
    std::ifstream file(argv[i], std::ios::binary);
    if (!file) {
      std::fprintf(stderr, "cannot be opened\n");
      return 1;
    }
    const std::string input{std::istreambuf_iterator<char>(file), {}};
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input.data()),
                           input.size());
  }
  std::fprintf(stderr, "%d inputs\n", argc - 1);
  return 0;
}

#include "cmd/security/test_directory.h"

#include <gtest/gtest.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <system_error>
#include <utility>

#include "cmd/security/tls_file_names.h"

namespace postcopy {

DevAuthority NewAuthority(const std::string& name, Validity validity) {
  absl::StatusOr<DevAuthority> authority = DevAuthority::Create(name, validity);
  EXPECT_TRUE(authority.ok()) << authority.status();
  return *std::move(authority);
}

Identity NewIdentity(const DevAuthority& authority,
                     const std::vector<std::string>& names, IdentityUse use,
                     Validity validity) {
  absl::StatusOr<Identity> identity = authority.Issue(names, use, validity);
  EXPECT_TRUE(identity.ok()) << identity.status();
  return *std::move(identity);
}

TestDirectory::TestDirectory() {
  // Short enough for Unix sockets, unlike Bazel's.
  path_ = "/tmp/postcopy-tls-XXXXXX";
  EXPECT_NE(::mkdtemp(path_.data()), nullptr);
}

TestDirectory::~TestDirectory() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

void TestDirectory::Write(const std::string& name,
                          const std::string& text) const {
  const std::string draft = File(name + ".new");
  std::ofstream(draft, std::ios::binary) << text;
  std::filesystem::rename(draft, File(name));
}

std::string TestDirectory::Read(const std::string& name) const {
  std::stringstream text;
  text << std::ifstream(File(name), std::ios::binary).rdbuf();
  return text.str();
}

void TestDirectory::Remove(const std::string& name) const {
  std::filesystem::remove(File(name));
}

void TestDirectory::Fill(const std::string& authorities, const Identity& server,
                         const Identity& client) const {
  Write(kAuthoritiesFile, authorities);
  Write(kServerCertificateFile, server.certificate);
  Write(kServerKeyFile, server.key);
  Write(kClientCertificateFile, client.certificate);
  Write(kClientKeyFile, client.key);
}

}  // namespace postcopy

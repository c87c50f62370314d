#include "cmd/security/dev_certificates.h"

#include <sys/stat.h>

#include <string>

#include "cmd/security/certificate_check.h"
#include "cmd/security/test_directory.h"
#include "cmd/security/tls_file_names.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::HasSubstr;

constexpr const char* kAllFiles[] = {kAuthoritiesFile,       "ca-key.pem",
                                     kServerCertificateFile, kServerKeyFile,
                                     kClientCertificateFile, kClientKeyFile};

mode_t ModeOf(const std::string& path) {
  struct stat info = {};
  EXPECT_EQ(::stat(path.c_str(), &info), 0) << path;
  return info.st_mode & 0777;
}

class WriteDevCertsTest : public ::testing::Test {
 protected:
  absl::Status Write(bool force = false) const {
    return WriteDevCerts({.directory = directory_.path(),
                          .hosts = {"host-1.example", "127.0.0.1", "::1",
                                    "spiffe://example/host-1"},
                          .force = force});
  }

  void ExpectFits(const char* certificate, const char* key) const {
    const std::string certificate_pem = directory_.Read(certificate);
    const std::string key_pem = directory_.Read(key);
    const absl::Status status =
        CheckIdentity({certificate, certificate_pem}, {key, key_pem},
                      absl::Now() + absl::Hours(24 * 29));
    EXPECT_TRUE(status.ok()) << status;
  }

  TestDirectory directory_;
};

TEST_F(WriteDevCertsTest, MakesWhatADaemonWants) {
  const absl::Status status = Write();
  ASSERT_TRUE(status.ok()) << status;
  ExpectFits(kServerCertificateFile, kServerKeyFile);
  ExpectFits(kClientCertificateFile, kClientKeyFile);
  ExpectFits(kAuthoritiesFile, "ca-key.pem");
}

TEST_F(WriteDevCertsTest, KeysAreForTheirOwnerOnly) {
  ASSERT_TRUE(Write().ok());
  for (const char* key : {"ca-key.pem", kServerKeyFile, kClientKeyFile}) {
    EXPECT_EQ(ModeOf(directory_.File(key)), 0600u) << key;
  }
}

TEST_F(WriteDevCertsTest, MakesTheDirectoryForItsOwnerOnly) {
  const std::string path = directory_.File("fresh");
  ASSERT_TRUE(WriteDevCerts({.directory = path, .hosts = {"a"}}).ok());
  EXPECT_EQ(ModeOf(path), 0700u);
}

TEST_F(WriteDevCertsTest, OverwritesNothingUnlessForced) {
  for (const char* file : kAllFiles) {
    directory_.Write(file, "precious");
    const absl::Status status = Write();
    EXPECT_EQ(status.code(), absl::StatusCode::kAlreadyExists) << file;
    EXPECT_THAT(std::string(status.message()), HasSubstr(file));
    EXPECT_THAT(std::string(status.message()), HasSubstr("--force"));
    EXPECT_EQ(directory_.Read(file), "precious");
    directory_.Remove(file);
  }
  for (const char* file : kAllFiles) directory_.Write(file, "old");
  ASSERT_TRUE(Write(/*force=*/true).ok());
  ExpectFits(kServerCertificateFile, kServerKeyFile);
  EXPECT_EQ(ModeOf(directory_.File(kServerKeyFile)), 0600u);
}

TEST_F(WriteDevCertsTest, SaysWhereItCannotWrite) {
  const absl::Status status =
      WriteDevCerts({.directory = "/proc/none/such", .hosts = {"a"}});
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("/proc/none/such"));
}

TEST(DevAuthorityTest, NamesWhatIsNoName) {
  const DevAuthority authority = NewAuthority("a");
  for (const char* name : {"", "a b", "a,DNS:b", "spiffe://a b", "a\n"}) {
    const absl::Status status =
        authority.Issue({name}, IdentityUse::kServer).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
  }
  EXPECT_TRUE(
      authority.Issue({std::string(253, 'a')}, IdentityUse::kServer).ok());
  EXPECT_FALSE(
      authority.Issue({std::string(254, 'a')}, IdentityUse::kServer).ok());
  EXPECT_FALSE(authority.Issue({}, IdentityUse::kServer).ok());
}

}  // namespace
}  // namespace postcopy

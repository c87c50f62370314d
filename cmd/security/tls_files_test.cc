#include "cmd/security/tls_files.h"

#include <sys/stat.h>
#include <unistd.h>

#include <condition_variable>
#include <filesystem>
#include <mutex>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cmd/security/dev_certificates.h"
#include "cmd/security/test_directory.h"
#include "cmd/security/tls_file_names.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace postcopy {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr const char* kAllFiles[] = {kAuthoritiesFile, kServerCertificateFile,
                                     kServerKeyFile, kClientCertificateFile,
                                     kClientKeyFile};

class TlsFilesTest : public ::testing::Test {
 protected:
  TlsFilesTest() { Fill(); }

  // New identities of the same authority.
  void Fill() {
    server_ = NewIdentity(authority_, {"host"}, IdentityUse::kServer);
    client_ = NewIdentity(authority_, {"host"}, IdentityUse::kClient);
    directory_.Fill(authority_.identity().certificate, server_, client_);
  }

  // Looks only when it is told to, unless `interval` says otherwise.
  TlsFiles::Options Options(absl::Duration interval = absl::Hours(1)) {
    return {.directory = directory_.path(),
            .server = true,
            .client = true,
            .reload_interval = interval,
            .log = [this](const std::string& sentence) {
              std::lock_guard lock(mutex_);
              said_.push_back(sentence);
              said_changed_.notify_all();
            }};
  }

  void Start() {
    auto files = TlsFiles::Create(Options());
    ASSERT_TRUE(files.ok()) << files.status();
    files_ = *std::move(files);
  }

  void ExpectRefused(const ::testing::Matcher<std::string>& message) {
    const absl::Status status = TlsFiles::Create(Options()).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
    EXPECT_THAT(std::string(status.message()), message);
  }

  std::vector<std::string> said() {
    std::lock_guard lock(mutex_);
    return said_;
  }
  void AwaitSaid() {
    std::unique_lock lock(mutex_);
    said_changed_.wait(lock, [this] { return !said_.empty(); });
  }

  const DevAuthority authority_ = NewAuthority("a");
  TestDirectory directory_;
  Identity server_;
  Identity client_;
  std::mutex mutex_;
  std::condition_variable said_changed_;
  std::vector<std::string> said_;
  std::unique_ptr<TlsFiles> files_;
};

TEST_F(TlsFilesTest, ReadsAllThatIsThere) {
  Start();
  const auto now = files_->Current();
  EXPECT_EQ(now->authorities, authority_.identity().certificate);
  EXPECT_EQ(now->server.certificate, server_.certificate);
  EXPECT_EQ(now->server.key, server_.key);
  EXPECT_EQ(now->client.certificate, client_.certificate);
  EXPECT_EQ(now->client.key, client_.key);
}

TEST_F(TlsFilesTest, AFileThatIsMissingIsNamed) {
  for (const char* file : kAllFiles) {
    directory_.Remove(file);
    ExpectRefused(AllOf(HasSubstr(directory_.File(file) + " is missing"),
                        HasSubstr("postcopyctl dev-certs")));
    Fill();
  }
}

TEST_F(TlsFilesTest, WhatIsNotNeededNeedNotBeThere) {
  directory_.Remove(kClientCertificateFile);
  directory_.Remove(kClientKeyFile);
  TlsFiles::Options options = Options();
  options.client = false;
  EXPECT_TRUE(TlsFiles::Create(options).ok());
  Fill();
  directory_.Remove(kServerCertificateFile);
  directory_.Remove(kServerKeyFile);
  options = Options();
  options.server = false;
  EXPECT_TRUE(TlsFiles::Create(options).ok());
}

TEST_F(TlsFilesTest, WhatIsNoFileIsRefused) {
  directory_.Remove(kServerKeyFile);
  std::filesystem::create_directory(directory_.File(kServerKeyFile));
  ExpectRefused(HasSubstr(directory_.File(kServerKeyFile) + " is no file"));
  std::filesystem::remove(directory_.File(kServerKeyFile));
  // Nobody ever writes into it.
  ASSERT_EQ(::mkfifo(directory_.File(kServerKeyFile).c_str(), 0600), 0);
  ExpectRefused(HasSubstr("is no file"));
}

TEST_F(TlsFilesTest, AFileThatMayNotBeReadIsNamed) {
  if (::geteuid() == 0) GTEST_SKIP() << "root may read everything";
  ASSERT_EQ(::chmod(directory_.File(kServerKeyFile).c_str(), 0), 0);
  ExpectRefused(AllOf(HasSubstr(kServerKeyFile), HasSubstr("cannot be read")));
}

TEST_F(TlsFilesTest, AFileMayBeOneMiBAndNotAByteMore) {
  // What stands in front of the first certificate is a comment.
  const std::string& pem = authority_.identity().certificate;
  const std::string comment(kTlsFileBytesMax - pem.size() - 1, '#');
  directory_.Write(kAuthoritiesFile, comment + "\n" + pem);
  Start();
  directory_.Write(kAuthoritiesFile, "#" + comment + "\n" + pem);
  ExpectRefused(HasSubstr("more than 1048576 bytes"));
}

TEST_F(TlsFilesTest, WhatCannotBeUsedIsNamed) {
  directory_.Write(kServerKeyFile, client_.key);
  ExpectRefused(AllOf(HasSubstr(kServerKeyFile), HasSubstr("is not the key")));
  Fill();
  const Identity old = NewIdentity(authority_, {"host"}, IdentityUse::kClient,
                                   {.until = absl::Now() - absl::Minutes(1)});
  directory_.Fill(authority_.identity().certificate, server_, old);
  ExpectRefused(
      AllOf(HasSubstr(kClientCertificateFile), HasSubstr("has expired")));
  const Identity early = NewIdentity(authority_, {"host"}, IdentityUse::kServer,
                                     {.from = absl::Now() + absl::Hours(1)});
  directory_.Fill(authority_.identity().certificate, early, client_);
  ExpectRefused(
      AllOf(HasSubstr(kServerCertificateFile), HasSubstr("holds only from")));
}

TEST_F(TlsFilesTest, NewFilesAreTakenAndWhoWantsToKnowIsTold) {
  Start();
  std::vector<std::string> told;
  files_->OnChange([&told](const TlsFileSet& set) {
    told.push_back(set.server.certificate);
    return absl::OkStatus();
  });
  const std::string first = server_.certificate;
  const auto before = files_->Current();
  Fill();
  ASSERT_TRUE(files_->Reload().ok());
  EXPECT_EQ(before->server.certificate, first) << "what is held stays";
  EXPECT_EQ(files_->Current()->server.certificate, server_.certificate);
  EXPECT_THAT(told, ElementsAre(first, server_.certificate));
  EXPECT_THAT(said(), ElementsAre(HasSubstr("are in use for new connections")));
}

TEST_F(TlsFilesTest, WhatCouldNotBeTakenIsTriedAgain) {
  Start();
  absl::Status may;
  files_->OnChange([&may](const TlsFileSet& /*set*/) { return may; });
  const std::string first = server_.certificate;
  Fill();
  may = absl::ResourceExhaustedError("no descriptor");
  EXPECT_EQ(files_->Reload(), may);
  EXPECT_EQ(files_->Reload(), may);
  EXPECT_EQ(files_->Current()->server.certificate, first);
  EXPECT_THAT(said(), ElementsAre(HasSubstr("no descriptor")));
  may = absl::OkStatus();
  EXPECT_TRUE(files_->Reload().ok());
  EXPECT_EQ(files_->Current()->server.certificate, server_.certificate);
}

TEST_F(TlsFilesTest, FilesThatDidNotChangeAreLeftAlone) {
  Start();
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(files_->Reload().ok());
  EXPECT_THAT(said(), IsEmpty());
}

TEST_F(TlsFilesTest, ABrokenSetChangesNothingAndIsSaidOnce) {
  Start();
  const auto before = files_->Current();
  directory_.Write(kServerKeyFile, "broken");
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(files_->Reload().ok());
  EXPECT_EQ(files_->Current(), before);
  EXPECT_THAT(said(),
              ElementsAre(AllOf(HasSubstr(kServerKeyFile),
                                HasSubstr("the old ones stay in use"))));
  directory_.Remove(kServerKeyFile);
  EXPECT_FALSE(files_->Reload().ok());
  EXPECT_EQ(files_->Current(), before);
  // Another fault is another sentence; and then all is well again.
  EXPECT_EQ(said().size(), 2u);
  Fill();
  EXPECT_TRUE(files_->Reload().ok());
  EXPECT_EQ(files_->Current()->server.key, server_.key);
}

// An operator replaces one file after the other.
TEST_F(TlsFilesTest, HalfASetIsNotTaken) {
  Start();
  const auto before = files_->Current();
  const Identity next = NewIdentity(authority_, {"host"}, IdentityUse::kServer);
  directory_.Write(kServerCertificateFile, next.certificate);
  EXPECT_FALSE(files_->Reload().ok());
  EXPECT_EQ(files_->Current(), before);
  directory_.Write(kServerKeyFile, next.key);
  EXPECT_TRUE(files_->Reload().ok());
  EXPECT_EQ(files_->Current()->server.certificate, next.certificate);
}

// A clock that was wrong: the files have not changed, but can be used now.
TEST_F(TlsFilesTest, WhatWasTooEarlyIsTakenWhenItsTimeHasCome) {
  absl::Time now = absl::Now();
  TlsFiles::Options options = Options();
  options.now = [&now] { return now; };
  auto files = TlsFiles::Create(options);
  ASSERT_TRUE(files.ok()) << files.status();
  const Identity early = NewIdentity(authority_, {"host"}, IdentityUse::kServer,
                                     {.from = now + absl::Hours(1)});
  directory_.Fill(authority_.identity().certificate, early, client_);
  EXPECT_FALSE((*files)->Reload().ok());
  now += absl::Hours(2);
  EXPECT_TRUE((*files)->Reload().ok());
  EXPECT_EQ((*files)->Current()->server.key, early.key);
}

TEST_F(TlsFilesTest, LooksByItself) {
  auto files = TlsFiles::Create(Options(absl::Milliseconds(10)));
  ASSERT_TRUE(files.ok()) << files.status();
  directory_.Write(kServerKeyFile, "broken");
  AwaitSaid();
  EXPECT_THAT(said()[0], HasSubstr(kServerKeyFile));
}

}  // namespace
}  // namespace postcopy

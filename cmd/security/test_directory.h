// A --tls_dir for tests.
#ifndef CMD_SECURITY_TEST_DIRECTORY_H_
#define CMD_SECURITY_TEST_DIRECTORY_H_

#include <string>
#include <vector>

#include "cmd/security/dev_certificates.h"
#include "cmd/security/identity.h"

namespace postcopy {

// A fresh authority; a test fails if there is none to be had.
DevAuthority NewAuthority(const std::string& name, Validity validity = {});
// As DevAuthority::Issue.
Identity NewIdentity(const DevAuthority& authority,
                     const std::vector<std::string>& names, IdentityUse use,
                     Validity validity = {});

// A directory of its own in /tmp, removed with it.
class TestDirectory {
 public:
  TestDirectory();
  ~TestDirectory();
  TestDirectory(const TestDirectory&) = delete;
  TestDirectory& operator=(const TestDirectory&) = delete;

  const std::string& path() const { return path_; }
  std::string File(const std::string& name) const { return path_ + "/" + name; }

  // Replaces the file in one step, as careful operators do.
  void Write(const std::string& name, const std::string& text) const;
  std::string Read(const std::string& name) const;
  void Remove(const std::string& name) const;

  // All that a daemon wants.
  void Fill(const std::string& authorities, const Identity& server,
            const Identity& client) const;

 private:
  std::string path_;
};

}  // namespace postcopy

#endif  // CMD_SECURITY_TEST_DIRECTORY_H_
